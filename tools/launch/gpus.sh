#!/usr/bin/env bash
# Trains on all GPUs of one machine (or on its CPU), in one process, and starts again after a crash or a kill: training
# resumes from the newest checkpoint. Ends when the run is finished, or after several ends in a row without a new one.
#
#   tools/launch/gpus.sh --config=configs/imagenet64.py:dtype=bfloat16 --workdir=runs/imagenet64
#
# PYTHON=.venv/bin/python, ATTEMPTS=5 (ends in a row without progress), PAUSE=10 (seconds between attempts).
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-.venv/bin/python}
attempts=${ATTEMPTS:-5}
pause=${PAUSE:-10}
workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done
if [[ -z $workdir ]]; then
  echo "error: no --workdir=DIR among the arguments; it is where training resumes from" >&2
  exit 2
fi

# The list of finished checkpoints, which is another after progress.
finished() { find "$workdir/checkpoints" -name commit_success.txt 2>/dev/null | sort || true; }

left=$attempts
while ((left > 0)); do
  before=$(finished)
  status=0
  "$python" -m jet_jax.train "$@" || status=$?
  if ((status == 0)); then
    exit 0
  fi
  if [[ $(finished) == "$before" ]]; then
    left=$((left - 1))
  else
    left=$attempts
  fi
  echo "training ended with status $status; $left attempts left" >&2
  sleep "$pause"
done
exit 1
