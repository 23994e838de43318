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
if [[ $workdir =~ ^[A-Za-z][A-Za-z0-9+.-]*:/ ]]; then
  echo "error: --workdir=$workdir is an address; mount the bucket (gcsfuse, mount-s3) and give that path" >&2
  exit 2
fi
folder=${workdir/#\~\//$HOME/} # no shell expands ~ behind "--workdir=", and training does

# Lists the complete checkpoints. A changed list means progress.
complete_checkpoints() { find "$folder/checkpoints" -name commit_success.txt 2>/dev/null | sort || true; }

child=
stopping=
tell_child() { kill -TERM "$child"; }
stop() {
  stopping=1
  tell_child 2>/dev/null || true
}

# Runs a command and returns its exit status. A TERM or INT to the script is sent to the command as TERM.
run() {
  trap stop TERM INT
  "$@" &
  child=$!
  if [[ -n $stopping ]]; then stop; fi
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done # a signal interrupts `wait`, but not the child
  wait "$child"
}
