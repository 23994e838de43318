#!/usr/bin/env bash
# Trains on all GPUs of one machine (or on its CPU), in one process, and starts again after a crash or a kill: training
# resumes from the newest checkpoint. Ends when the run is finished, or after several ends in a row without a new one.
# A TERM or INT to this script (Ctrl-C) goes to training as TERM, and both end.
#
#   tools/launch/gpus.sh --config=configs/imagenet64.py:dtype=bfloat16 --workdir=runs/imagenet64
#
# It may be called from any directory; paths are relative to that one.
# PYTHON=.venv/bin/python of the repository, ATTEMPTS=5 (ends in a row without progress), PAUSE=10 (seconds between).
set -euo pipefail
# shellcheck source=tools/launch/common.sh
source "$(dirname "$0")/common.sh"

python=${PYTHON:-$repository/.venv/bin/python}
attempts=${ATTEMPTS:-5}
pause=${PAUSE:-10}
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}

left=$attempts
while ((left > 0)); do
  before=$(finished)
  status=0
  run "$python" -m jet_jax.train "$@" || status=$?
  if [[ $status == 0 || -n $stopping ]]; then
    exit "$status"
  fi
  if [[ $(finished) == "$before" ]]; then
    left=$((left - 1))
  else
    left=$attempts
  fi
  echo "training ended with status $status; $left attempts left" >&2
  run sleep "$pause" || exit "$status"
done
exit 1
