#!/usr/bin/env bash
# Trains on a TPU pod slice of Google Cloud, from your own machine. The script creates a missing slice, installs the
# repository on every host and trains on all hosts. After a preemption it creates a new slice and resumes.
#
#   TPU=jet ZONE=us-west4-a TYPE=v5litepod-256 tools/launch/tpu_pod.sh \
#     --config=configs/imagenet64.py:large,dtype=bfloat16,mesh.fsdp=16 --workdir=gs://my-bucket/runs/imagenet64
#
# The work directory is in a bucket, or on a file system that all hosts mount. The data must be on such a file system:
# Filestore, or a bucket that SETUP mounts by gcsfuse. The service account of the slice needs the role Storage Object
# Admin of the bucket. `python -m tools.compile_pod` computes on a CPU beforehand whether the run fits.
#
# THE SLICE COSTS MONEY UNTIL IT IS DELETED, also after success. The last line of output has the command to delete it.
# Ctrl-C stops this script, but not always training on the hosts. A rerun of the script stops such training first.
#
# Environment variables and their defaults:
#   SETUP=true                     command that every host runs first, for example to mount the file system
#   DELETE=                        1 deletes the slice after success
#   SPOT=                          1 requests a slice that may be preempted
#   VERSION=v2-alpha-tpuv5-lite    image of the hosts
#   PYTHON=python3                 Python on the hosts, 3.11 or newer; SETUP may install one on an older image
#   REPOSITORY, COMMIT             code on the hosts; by default origin and HEAD of this clone
#   PAUSE=60                       seconds between checks of the slice
#   ATTEMPTS=5                     failures of training on one slice; rejected arguments or data (status 2) end the script
#
# The script waits for a slice without limit. A new checkpoint in a bucket, which `gcloud storage` lists, gives training
# all its attempts again. On another file system this machine cannot see checkpoints, and every failure counts.
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
  echo "error: commit $commit is not pushed, so the hosts cannot fetch it; push it, or set COMMIT" >&2
  exit 2
fi

tpu() { gcloud compute tpus tpu-vm "$1" "$TPU" --zone="$ZONE" "${@:2}"; }
on_all() { tpu ssh --worker=all --command="$1"; }

deleted=
errors=$(mktemp)
# shellcheck disable=SC2317,SC2329 # called by the trap
at_exit() {
  rm -f "$errors"
  if [[ -z $deleted ]]; then
    echo "$TPU costs money until it is deleted: gcloud compute tpus tpu-vm delete $TPU --zone=$ZONE" >&2
  fi
}
trap at_exit EXIT

# Prints the state of the slice: MISSING for a NOT_FOUND of Google Cloud, and nothing after any other error. A failure
# of the network or of the login must not create a second slice.
state() {
  if tpu describe --format='value(state)' 2>"$errors"; then return; fi
  if grep -q NOT_FOUND "$errors"; then echo MISSING; else cat "$errors" >&2; fi
}

# Waits until the slice is ready, and creates a missing slice.
await_slice() {
  local now
  while now=$(state) && [[ $now != READY ]]; do
    echo "state of $TPU: ${now:-unknown}" >&2
    case $now in
      MISSING)
        left=$attempts # a new slice has all its attempts
        tpu create --accelerator-type="$TYPE" --version="$version" ${SPOT:+--spot} && continue
        ;;
      PREEMPTED | TERMINATED) tpu delete --quiet && continue ;; # such a slice never recovers
      STOPPED) tpu start && continue ;;                         # stopped by hand; the disks keep the installation
      *) ;;                                                     # in transition, or unknown: wait
    esac
    sleep "$pause"
  done
}

# Prepares a host. It may run repeatedly. Its "error: on HOST" ends the script, because a new attempt would fail too.
# shellcheck disable=SC2317,SC2329 # called on the hosts
prepare() {
  set -e
  give_up() { echo "error: on $(hostname): $1" && exit 1; }
  # Prints the processes of earlier training for this work directory that outlived their connection.
  earlier() {
    for process in $(pgrep -f '[j]et_jax.train'); do # the brackets exclude the shell that runs this function
      grep -qszxF -e "--workdir=$workdir" -e "$workdir" "/proc/$process/cmdline" && echo "$process"
    done || true
  }
  earlier | xargs --no-run-if-empty kill || true
  for _ in {1..60}; do if [[ -n $(earlier) ]]; then sleep 1; fi; done
  earlier | xargs --no-run-if-empty kill -KILL || true
  while [[ -n $(earlier) ]]; do sleep 1; done

  bash -c "$setup"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || give_up "$python is not Python 3.11 or newer; install one in SETUP and name it, as in PYTHON=python3.11 SETUP='sudo \
add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get install -y python3.11-venv'"
  git init --quiet jet_jax
  cd jet_jax
  git fetch --quiet "$url" '+refs/heads/*:refs/remotes/origin/*'
  git checkout --quiet --detach "$commit" || give_up "commit $commit is not in $url; push it, or set COMMIT"
  "$python" -m venv .venv
  # The versions of the commit, so that a slice made later has those of the first.
  .venv/bin/pip install --quiet -c requirements.txt -e '.[tpu,gcs]'
}

left=$attempts
has_progressed || true
while ((left > 0)); do
  await_slice
  status=0
  output=$(on_all "$(declare -p setup python url commit workdir); $(declare -f prepare); prepare" 2>&1) || status=$?
  echo "$output" >&2
  if [[ $output =~ "error: on "[[:alnum:]] ]]; then
    exit 1
  fi
  # Training on a host that shuts down saves and stops. JET_JAX_STOP_STATUS keeps this from counting as success.
  if ((status == 0)); then
    on_all "cd jet_jax && JET_JAX_STOP_STATUS=75 .venv/bin/python -m jet_jax.train$(printf ' %q' "$@")" || status=$?
    if ((status == 0)); then
      if [[ -n ${DELETE:-} ]]; then tpu delete --quiet && deleted=1; fi
      exit 0
    elif ((status == rejected)); then # gcloud passes on the status of the first host that failed
      echo "training ended with status $status: its arguments or its data are rejected; not tried again" >&2
      exit "$status"
    fi
  fi
  left=$((left - 1))
  if has_progressed; then left=$attempts; fi
  echo "training failed; $left attempts left on this slice" >&2
  sleep "$pause"
done
exit 1
