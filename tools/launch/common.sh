# shellcheck shell=bash
# Functions shared by the launch scripts, which source this file with the arguments of training in "$@".

# shellcheck disable=SC2034 # used by the scripts
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

workdir=
arguments=("$@")
for i in "${!arguments[@]}"; do
  case ${arguments[i]} in
    --workdir=*) workdir=${arguments[i]#*=} ;;
    --workdir) workdir=${arguments[i + 1]:-} ;;
  esac
done
if [[ -z $workdir ]]; then
  echo "error: no --workdir=DIR among the arguments; give the work directory that training resumes from" >&2
  exit 2
fi
if [[ $workdir =~ ^[A-Za-z][A-Za-z0-9+.-]*:/ && ! $workdir =~ ^gs://[^/]+/. ]]; then
  echo "error: --workdir=$workdir is an address that is not gs://BUCKET/FOLDER; mount the bucket (mount-s3, gcsfuse) and" \
    "give that path" >&2
  exit 2
fi
folder=${workdir/#\~\//$HOME/} # no shell expands ~ behind "--workdir=", and training does
folder=${folder%/}

# Exit statuses of training that the scripts act on: docs/reference/reliability.md has the table.
rejected=2 # the command or its data; another attempt would end in the same way

# Ends the script if an interpreter does not start, or lacks the requirements.
check_python() {
  local problem
  if problem=$("$1" -c 'import importlib.util as u; print(*[n for n in ("jax", "flax", "grain") if not u.find_spec(n)])'); then
    problem=${problem:+lacks $problem}
  else
    problem="does not start"
  fi
  if [[ -n $problem ]]; then
    echo "error: PYTHON=$1 $problem; run 'make .venv/installed' in $repository for the default interpreter, or name" \
      "another that has the requirements, as in PYTHON=/path/to/python" >&2
    exit "$rejected"
  fi
}

# Lists the complete checkpoints; fails if those of a bucket cannot be listed.
complete_checkpoints() {
  local told
  case $folder in
    gs://*)
      if told=$(gcloud storage ls "$folder/checkpoints/*/commit_success.txt" 2>&1); then
        grep '^gs://' <<<"$told" || true
      elif [[ $told != *"matched no objects"* ]]; then
        echo "$told" >&2
        return 1
      fi
      ;;
    *) find "$folder/checkpoints" -name commit_success.txt 2>/dev/null | sort || true ;;
  esac
}

# Returns true if there are other complete checkpoints than at the last call. What cannot be listed is no progress.
saved=
has_progressed() {
  local now
  now=$(complete_checkpoints) && [[ $now != "$saved" ]] || return 1
  saved=$now
}

child=
stopping=
tell_child() { kill -TERM "$child"; }
stop() {
  stopping=1
  tell_child 2>/dev/null || true
}

# Runs a command and returns its exit status. A signal that asks the script to end is sent to the command as TERM.
run() {
  trap stop TERM INT HUP USR1 USR2 XCPU
  "$@" &
  child=$!
  if [[ -n $stopping ]]; then stop; fi
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal interrupts `wait`, but not the child
  wait "$child"
}
