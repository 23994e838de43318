#!/usr/bin/env bash
# Trains on a TPU pod slice of Google Cloud, from your own machine: makes the slice if it is not there, installs the
# repository on every host, trains on all of them, and after a preemption makes the slice anew and resumes.
#
#   TPU=jet ZONE=us-west4-a TYPE=v5litepod-256 tools/launch/tpu_pod.sh \
#     --config=configs/imagenet64.py:large,dtype=bfloat16,mesh.fsdp=16 --workdir=/mnt/shared/runs/imagenet64
#
# The work directory and the data must be on a file system that all hosts mount (Filestore, or a bucket by gcsfuse);
# SETUP is a command that every host runs first, to mount it. `python -m tools.compile_pod` says beforehand what fits.
#
# THE SLICE COSTS MONEY UNTIL IT IS DELETED, also after success; the script's last line says how. DELETE=1 deletes it at
# success. Ctrl-C ends this script, but not always training on the hosts; to start the script again does.
#
# SPOT=1 asks for a slice that may be preempted. VERSION is the image; if its Python is older than 3.11, let SETUP
# install one and PYTHON=python3.11 pick it. The hosts run COMMIT (this clone's HEAD) of REPOSITORY (its origin).
# The script waits for a slice as long as it takes, with PAUSE=60 seconds between questions, but gives up after ATTEMPTS=5
# ends of training on one slice: the work directory, and so progress, cannot be seen from here.
set -euo pipefail
# shellcheck source=tools/launch/common.sh
source "$(dirname "$0")/common.sh"

: "${TPU:?name of the slice}" "${ZONE:?zone}" "${TYPE:?accelerator type, such as v5litepod-256}"
url=${REPOSITORY:-$(git -C "$repository" remote get-url origin)}
commit=$(git -C "$repository" rev-parse --verify "${COMMIT:-HEAD}^{commit}")
version=${VERSION:-v2-alpha-tpuv5-lite}
setup=${SETUP:-true}
python=${PYTHON:-python3}
attempts=${ATTEMPTS:-5}
pause=${PAUSE:-60}

if [[ -z ${REPOSITORY:-} && -z $(git -C "$repository" branch --remotes --contains "$commit") ]]; then
  echo "error: commit $commit is not pushed, and the hosts could not fetch it; push it, or set COMMIT" >&2
  exit 2
fi

tpu() { gcloud compute tpus tpu-vm "$1" "$TPU" --zone="$ZONE" "${@:2}"; }
on_all() { tpu ssh --worker=all --command="$1"; }

deleted=
errors=$(mktemp)
# shellcheck disable=SC2317 # called by the trap
at_exit() {
  rm -f "$errors"
  if [[ -z $deleted ]]; then
    echo "$TPU costs money while it is there: gcloud compute tpus tpu-vm delete $TPU --zone=$ZONE" >&2
  fi
}
trap at_exit EXIT

# MISSING only if Google Cloud says so: a failure of the network or of a login tells nothing about the slice.
state() {
  if tpu describe --format='value(state)' 2>"$errors"; then return; fi
  if grep -q NOT_FOUND "$errors"; then echo MISSING; else cat "$errors" >&2; fi
}

# Waits until the slice is ready, and has it made if need be.
await_slice() {
  local now
  while now=$(state) && [[ $now != READY ]]; do
    echo "state of $TPU: ${now:-not known}" >&2
    case $now in
      MISSING)
        left=$attempts # of a new slice
        tpu create --accelerator-type="$TYPE" --version="$version" ${SPOT:+--spot} && continue
        ;;
      PREEMPTED | TERMINATED) tpu delete --quiet && continue ;; # such a slice never comes back
      STOPPED) tpu start && continue ;;                         # somebody stopped it; its disks hold all that is installed
      *) ;;                                                     # it is being made or mended, or not known: wait
    esac
    sleep "$pause"
  done
}

# Runs on every host, and can be repeated. Another attempt would not mend what it refuses.
# shellcheck disable=SC2317 # called on the hosts
prepare() {
  set -e
  refuse() { echo "error: on $(hostname): $1" && exit 1; }
  # Training for this work directory that has outlived its connection.
  old() {
    for process in $(pgrep -f '[j]et_jax.train'); do # the brackets keep it from finding the shell that runs this
      grep -qszxF -e "--workdir=$workdir" -e "$workdir" "/proc/$process/cmdline" && echo "$process"
    done || true
  }
  old | xargs --no-run-if-empty kill || true
  for _ in {1..60}; do if [[ -n $(old) ]]; then sleep 1; fi; done
  old | xargs --no-run-if-empty kill -KILL || true
  while [[ -n $(old) ]]; do sleep 1; done

  bash -c "$setup"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || refuse "$python is not Python 3.11 or newer; install one by SETUP and name it, as in PYTHON=python3.11 SETUP='sudo \
add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get install -y python3.11-venv'"
  git init --quiet jet_jax
  cd jet_jax
  git fetch --quiet "$url" '+refs/heads/*:refs/remotes/origin/*'
  git checkout --quiet --detach "$commit" || refuse "commit $commit is not in $url; push it, or set COMMIT"
  "$python" -m venv .venv
  .venv/bin/pip install --quiet -e '.[tpu]'
}

left=$attempts
while ((left > 0)); do
  await_slice
  status=0
  output=$(on_all "$(declare -p setup python url commit workdir); $(declare -f prepare); prepare" 2>&1) || status=$?
  echo "$output" >&2
  if [[ $output =~ "error: on "[[:alnum:]] ]]; then
    exit 1
  fi
  # A host that is shut down asks training to end, which would else count as its success.
  if ((status == 0)) && on_all "cd jet_jax && JET_JAX_STOP_STATUS=75 .venv/bin/python -m jet_jax.train$(printf ' %q' "$@")"; then
    if [[ -n ${DELETE:-} ]]; then tpu delete --quiet && deleted=1; fi
    exit 0
  fi
  left=$((left - 1))
  echo "this attempt has ended; $left attempts left on this slice" >&2
  sleep "$pause"
done
exit 1
