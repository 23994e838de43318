# shellcheck shell=bash
# What the launch scripts share; they source it, with the arguments of the training command in "$@".

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
  echo "error: no --workdir=DIR among the arguments; it is where training resumes from" >&2
  exit 2
fi

# The list of finished checkpoints, which is another after progress.
finished() { find "$workdir/checkpoints" -name commit_success.txt 2>/dev/null | sort || true; }

child=
stopping=
tell_child() { kill -TERM "$child"; }
stop() {
  stopping=1
  tell_child 2>/dev/null || true
}

# Runs a command to its end and gives its status. A TERM or INT meanwhile is passed on to it as TERM.
run() {
  trap stop TERM INT
  "$@" &
  child=$!
  if [[ -n $stopping ]]; then stop; fi
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal ends `wait`, but not the child
  wait "$child"
}
