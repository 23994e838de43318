#!/usr/bin/env bash
# Trains in one process on all GPUs of one machine, or on the CPU. After a crash or a kill, training resumes from the
# latest checkpoint. The script exits when the run is finished, or after several failures in a row without a new
# checkpoint, or at once with status 2 if training rejects its arguments or its data. A TERM, INT (Ctrl-C), HUP, USR1,
# USR2 or XCPU to the script is sent to training as TERM; training saves, and both exit.
#
#   tools/launch/gpus.sh --config=configs/imagenet64.py:dtype=bfloat16 --workdir=runs/imagenet64
#
# The script runs from any directory. Relative paths are relative to the current directory.
#
# Environment variables and their defaults:
#   PYTHON=.venv/bin/python    Python interpreter; the default is in the repository
#   ATTEMPTS=5                 failures in a row without progress
#   PAUSE=10                   seconds between attempts
set -euo pipefail
# shellcheck source=tools/launch/common.sh
source "$(dirname "$0")/common.sh"

python=${PYTHON:-$repository/.venv/bin/python}
attempts=${ATTEMPTS:-5}
pause=${PAUSE:-10}
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}

check_python "$python"
left=$attempts
has_progressed || true
while ((left > 0)); do
  status=0
  run "$python" -m jet_jax.train "$@" || status=$?
  if [[ $status == 0 || -n $stopping ]]; then
    exit "$status"
  fi
  if ((status == rejected)); then
    echo "training ended with status $status: its arguments or its data are rejected; not tried again" >&2
    exit "$status"
  fi
  left=$((left - 1))
  if has_progressed; then left=$attempts; fi
  echo "training ended with status $status; $left attempts left" >&2
  run sleep "$pause" || exit "$status"
done
exit 1
