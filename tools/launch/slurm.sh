#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster: one process a GPU, joined by jax.distributed, which SLURM tells all it needs.
# A job that is preempted or ends early is queued again and resumes; the work directory must be on a shared file system.
#
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 tools/launch/slurm.sh \
#     --config=configs/imagenet64.py:large,dtype=bfloat16,mesh.fsdp=8 --workdir=/shared/runs/imagenet64
#
#SBATCH --job-name=jet_jax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"

limit=${RESTARTS:-20}
status=0
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m jet_jax.train "$@" || status=$?
if ((status != 0 && ${SLURM_RESTART_COUNT:-0} < limit)); then
  echo "training ended with status $status; queueing the job again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
