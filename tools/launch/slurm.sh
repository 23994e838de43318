#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: one process a GPU, joined by jax.distributed, which SLURM tells all it needs.
# Submit it from the repository's root; the work directory must be on a shared file system.
#
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 tools/launch/slurm.sh \
#     --config=configs/imagenet64.py:large,dtype=bfloat16,mesh.fsdp=8 --workdir=/shared/runs/imagenet64
#
# A job that is preempted, crashes or comes to its time limit is queued again and resumes from the newest checkpoint,
# until ATTEMPTS=3 ends in a row have brought no new one. Training is told by TERM to save before the job has to end.
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
source tools/launch/common.sh # SLURM runs a copy of this script, so that nothing lies beside it

# srun would answer a TERM by killing the tasks; scancel sends them the signal, and not to this script.
tell_child() { scancel --signal=TERM "$SLURM_JOB_ID"; }
trap stop USR1 # SLURM sends it some minutes before the time limit

if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it from sbatch any more
fi
mkdir -p "$workdir"
count=$workdir/slurm_ends_without_progress # lives on when the job is queued again
if ((${SLURM_RESTART_COUNT:-0} == 0)); then rm -f "$count"; fi

before=$(finished)
status=0
run srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m jet_jax.train "$@" || status=$?

job=$(scontrol show job "$SLURM_JOB_ID" || true)
# Training that was told to save ends with status 0, too. Before a preemption SLURM may tell the tasks alone.
if [[ $status == 0 && -z $stopping && ! $job =~ PreemptTime=[0-9] ]]; then
  exit 0
fi
# Otherwise SLURM is ending the job: a preempted one it queues again by itself, a cancelled one shall stay so.
if [[ $job != *JobState=RUNNING* ]]; then
  exit "$status"
fi
ends=0
if [[ $(finished) == "$before" ]]; then
  ends=$(($(cat "$count" 2>/dev/null || echo 0) + 1))
fi
echo "$ends" >"$count"
if ((status == 2 || ends >= ${ATTEMPTS:-3})); then
  echo "training ended with status $status, $ends times in a row without a new checkpoint; given up" >&2
  exit "$status"
fi
echo "training ended with status $status; queueing the job again" >&2
scontrol requeue "$SLURM_JOB_ID"
exit "$status"
