#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: one process per GPU, joined by jax.distributed from SLURM's own variables.
# Submit the script from the root of the repository. The work directory must be on a shared file system.
#
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 tools/launch/slurm.sh \
#     --config=configs/imagenet64.py:large,dtype=bfloat16,mesh.fsdp=8 --workdir=/shared/runs/imagenet64
#
# A job that crashes, is preempted or reaches its time limit is queued again, and resumes from the latest checkpoint.
# The script gives up after ATTEMPTS=3 failures in a row without a new checkpoint, and at once if training rejects its
# arguments or its data (status 2). Before the time limit, training receives a TERM and saves. PYTHON=.venv/bin/python
# names the interpreter.
#
#SBATCH --job-name=jet_jax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
# shellcheck source=tools/launch/common.sh
source tools/launch/common.sh # by this path, because SLURM runs a copy of the script elsewhere

# A TERM to srun would kill the tasks. scancel sends the signal to the tasks alone, and not to this script.
tell_child() { scancel --signal=TERM "$SLURM_JOB_ID"; }
trap stop USR1 # sent by SLURM 300 seconds before the time limit

if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # recent versions of srun do not inherit it from sbatch
fi
python=${PYTHON:-.venv/bin/python}
check_python "$python"
notes=${folder/#gs:\/\//$HOME/.jet_jax/} # of a run in a bucket, in the home directory
mkdir -p "$notes"
count=$notes/slurm_ends_without_progress # a file, so that the count survives when the job is queued again
if ((${SLURM_RESTART_COUNT:-0} == 0)); then rm -f "$count"; fi

has_progressed || true
status=0
# A failed process ends the others itself within a minute. SLURM would kill them at once, and report the kill as the
# status of all; it waits for them, with a limit.
run srun --kill-on-bad-exit=0 --wait=300 "$python" -m jet_jax.train "$@" || status=$?

job=$(scontrol show job "$SLURM_JOB_ID" || true)
# Status 0 also comes from training that saved on a signal. Before a preemption, SLURM may signal the tasks alone.
if [[ $status == 0 && -z $stopping && ! $job =~ PreemptTime=[0-9] ]]; then
  exit 0
fi
# SLURM itself queues a preempted job again, and a cancelled job must stay cancelled.
if [[ $job != *JobState=RUNNING* ]]; then
  exit "$status"
fi
failures=$(($(cat "$count" 2>/dev/null || echo 0) + 1))
if has_progressed; then failures=0; fi
echo "$failures" >"$count"
if ((status == rejected || failures >= ${ATTEMPTS:-3})); then
  echo "training ended with status $status, $failures times in a row without a new checkpoint; given up" >&2
  exit "$status"
fi
echo "training ended with status $status; queueing the job again" >&2
scontrol requeue "$SLURM_JOB_ID"
exit "$status"
