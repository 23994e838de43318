#!/usr/bin/env bash
# Trains on a TPU pod slice of Google Cloud, from your own machine: makes the slice if it is not there, installs the
# repository on every host, trains on all of them, and after a preemption makes the slice anew and resumes.
#
#   TPU=jet ZONE=us-west4-a TYPE=v5litepod-256 tools/launch/tpu_pod.sh \
#     --config=configs/imagenet64.py:large,dtype=bfloat16,mesh.fsdp=16 --workdir=/mnt/shared/runs/imagenet64
#
# The work directory and the data must be on a file system that all hosts mount (Filestore, or a bucket by gcsfuse);
# SETUP is a command that every host runs first, to mount it. `python -m tools.compile_pod` says beforehand what fits.
set -euo pipefail

: "${TPU:?name of the slice}" "${ZONE:?zone}" "${TYPE:?accelerator type, such as v5litepod-256}"
repository=${REPOSITORY:-$(git -C "$(dirname "$0")/../.." remote get-url origin)}
version=${VERSION:-v2-alpha-tpuv5-lite}
setup=${SETUP:-true}
attempts=${ATTEMPTS:-20}

state() { gcloud compute tpus tpu-vm describe "$TPU" --zone="$ZONE" --format='value(state)' 2>/dev/null || echo MISSING; }
on_all() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"; }

arguments=$(printf '%q ' "$@")
for ((attempt = 1; attempt <= attempts; attempt++)); do
  case $(state) in
    READY) ;;
    MISSING)
      gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type="$TYPE" --version="$version" ${SPOT:+--spot} \
        || { echo "no slice yet; trying again" >&2; sleep 60; continue; }
      ;;
    *)
      gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE" --quiet || true
      sleep 60
      continue
      ;;
  esac
  if on_all "$setup && (test -d jet_jax || git clone $(printf '%q' "$repository") jet_jax) && cd jet_jax \
    && (test -d .venv || python3 -m venv .venv) && .venv/bin/pip install --quiet -e '.[tpu]' \
    && .venv/bin/python -m jet_jax.train $arguments"; then
    exit 0
  fi
  echo "attempt $attempt of $attempts ended; state of $TPU: $(state)" >&2
  sleep 30
done
exit 1
