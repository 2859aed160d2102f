# shellcheck shell=bash
# Sourced by the launchers for Google Cloud: run a command on preemptible hosts until it is done. A launcher sets
# `command` and `what`, a description of the hosts, and defines the functions that differ between services:
#   read_state           set `state`: ABSENT, WAITING, ACTIVE, LOST (to delete and create again) or FAILED;
#                        fail if gcloud fails
#   create, delete       create and delete the hosts
#   copy FILE            copy a file to the home directory of every host
#   on_hosts WHO COMMAND run COMMAND on host 0 or on all; the output of host N and of its ssh is in $out/N.log

# shellcheck source=launch/shell.sh
. "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

# Options.
# shellcheck disable=SC2034  # project is for the launchers
name='' zone='' project='' config='' workdir='' cache='' restarts=10 keep=false
# Set by the launcher.
what='' state='' ssh_by_hand='' command=() setup=''
# State.
owned=false     # whether there may be hosts to delete
found=true      # whether hosts existed before the launcher and may have a run
deployed=false  # whether the program is installed on the hosts
started=false   # whether they run the command
printed=''      # the last printed state
newest=-2       # the newest checkpoint at the last start; -1 for none
idle=0          # starts since then without a new checkpoint
failures=0      # consecutive failed commands while hosts existed or may have existed
pass=()         # --config.KEY=VALUE

# The files that are copied to hosts.
code_files=(main.py configs launch mambaout_jax setup.py pyproject.toml requirements.txt README.md LICENSE)

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Parse the arguments. $1: switches; $2: options with a value; --a-key sets the variable a_key.
parse() {
  local switches=$1 options=$2 key
  shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) help; exit ;;
      --config.*) pass+=("$1"); shift; continue ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    key=${1#--}
    key=${key//-/_}
    case " $switches " in *" $1 "*) printf -v "$key" true; shift; continue ;; esac
    case " $options " in *" $1 "*) ;; *) die "$1 is not an option of ${0##*/}; see --help" ;; esac
    [ $# -gt 1 ] || die "$1 requires a value; see --help"
    printf -v "$key" %s "$2"
    shift 2
  done
}

require() {
  local key
  for key in "$@"; do [ -n "${!key}" ] || die "--${key//_/-} is missing; see --help"; done
  if [[ -n ${name:-} && ! $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]]; then
    die "--name is $name; expected lowercase letters, digits and dashes, starting with a letter"
  fi
  "$dry_run" || command -v gcloud >/dev/null || die "gcloud is not on the PATH; install the Google Cloud CLI first"
}

# Check the common options of the training launchers.
check_run() {
  [[ $restarts =~ ^[0-9]{1,6}$ ]] || die "--restarts is $restarts; expected a number"
  while [[ $workdir == ?*/ && $workdir != gs:// ]]; do workdir=${workdir%/}; done
  case $workdir in
    gs://[!/]*/?* | /*) ;;
    *) die "--workdir is $workdir; expected gs://BUCKET/... or an absolute path on a file system of all hosts" ;;
  esac
  # Only files of this folder are copied to the hosts.
  if [[ ${config%%:*} != configs/*.py || $config == *..* || ! -f $root/${config%%:*} ]]; then
    die "--config is $config; expected a file in $root/configs, such as configs/imagenet.py:mambaout_tiny"
  fi
  command=(env JAX_COMPILATION_CACHE_DIR="${cache:-${workdir%/*}/compiled}" .venv/bin/python main.py
    --config="$config" --workdir="$workdir" --distributed ${pass[@]+"${pass[@]}"})
}

begin() {
  scratch=$(mktemp -d)
  out=$scratch/out
  mkdir "$out"
  exec 3>&1
  trap end EXIT
  trap interrupted INT TERM HUP
}

# Print a gcloud command that changes something, and run it.
act() {
  rm -f "$out"/*.log
  run gcloud "$@" 2>"$scratch/errors"
}

# Run a gcloud query; with --dry-run only print it.
ask() {
  if "$dry_run"; then run gcloud "$@" >&3; else gcloud "$@" 2>"$scratch/errors"; fi
}

# Print a line about the last failure: the last output of a host, or gcloud's first error.
last_error() {
  local line
  line=$(cat "$out"/*.log 2>/dev/null | grep -v '^ *$' | tail -n 1 || true)
  [ -n "$line" ] || line=$(grep ERROR "$scratch/errors" | head -n 1 || true)
  [ -n "$line" ] || line=$(tail -n 1 "$scratch/errors")
  printf '%s' "${line#ERROR: }"
}

# Sleep so that signals are handled immediately.
pause() {
  "$dry_run" || { sleep "${MAMBAOUT_POLL_SECONDS:-30}" & wait $!; }
}

fail_unavailable() {
  local reason
  rm -f "$out"/*.log
  reason=$(last_error)
  case ${reason:=gcloud printed no reason} in
    *[Qq]uota*) fail "the project's quota does not allow $what in $zone ($reason); request more in the console under" \
      "IAM & Admin > Quotas, or use another zone or size" ;;
    *) fail "$what in $zone is not available: $reason" ;;
  esac
}

# Stop the run, if there is one, so that it saves a checkpoint.
stop_run() {
  "$owned" && { "$deployed" || "$found"; } || return 0
  say "Stopping; the run saves a checkpoint"
  on_hosts all "mambaout/launch/on_host.sh stop" || true
}

# Count consecutive failures; exit after the fifth with the message $*.
count_failure() {
  failures=$((failures + 1))
  if [ "$failures" -lt 5 ]; then pause; return; fi
  "$keep" || stop_run
  fail "$@"
}

# Update the state. If gcloud fails, the state of the hosts is unknown.
update_state() {
  local message
  rm -f "$out"/*.log
  read_state && return
  message="gcloud cannot read the state of $name: $(last_error)"
  "$owned" || fail "$message"
  count_failure "$message"
  return 1
}

# Wait for the hosts, and create them if they do not exist or were preempted.
await_hosts() {
  while :; do
    update_state || continue
    if [ "$state" != "$printed" ]; then say "$name is $state"; printed=$state; fi
    [ "$state" = ACTIVE ] || found=false deployed=false started=false failures=0
    owned=true
    case $state in
      ACTIVE) return ;;
      ABSENT) create || fail_unavailable; pause ;;
      LOST) delete || fail "$name was preempted and cannot be deleted: $(last_error)" ;;
      FAILED) fail_unavailable ;;
      *) pause ;;
    esac
  done
}

deploy() {
  "$deployed" && return
  say "Installing on all hosts (a few minutes)"
  run tar --exclude=__pycache__ -czf "$scratch/mambaout.tar.gz" -C "$root" "${code_files[@]}" &&
    copy "$scratch/mambaout.tar.gz" &&
    on_hosts all "mkdir -p mambaout && tar -xzf mambaout.tar.gz -C mambaout && mambaout/launch/setup_host.sh$setup" ||
    return
  "$dry_run" || tail -n 1 "$out/0.log"
  deployed=true
}

# Read the newest checkpoint on host 0, because the workdir may not be accessible here; fail after too many starts
# without a new one.
count_start() {
  local step
  [ -n "$workdir" ] || return 0
  on_hosts 0 "mambaout/launch/on_host.sh step $(quote "$workdir")" || return
  "$dry_run" && return
  step=$(sed -n 's/^mambaout-step //p' "$out/0.log")
  [ -n "$step" ] || return
  if [ "$step" -gt "$newest" ]; then newest=$step idle=0; else idle=$((idle + 1)); fi
  [ "$idle" -le "$restarts" ] && return
  local last=''
  [ "$newest" -lt 0 ] || last=" after step $newest"
  fail "no new checkpoint$last in $workdir (starts without one: $idle);" \
    "see the log above, save more often with --config.save_every_steps, or allow more with --restarts"
}

start() {
  local word line=''
  for word in "${command[@]}"; do line="$line $(quote "$word")"; done
  say "Starting the run"
  on_hosts all "mambaout/launch/on_host.sh start$line"
}

# Find the run of an earlier launcher, which had --keep or was killed. A host without the program has no run.
find_run() {
  local script=mambaout/launch/on_host.sh
  on_hosts all "if [ -e $script ]; then $script running; else echo mambaout-running no; fi" || return
  case $(sed -n 's/^mambaout-running //p' "$out"/*.log | sort -u) in
    *yes) say "Found the run"; deployed=true started=true ;;
    no) ;;
    *) return 1 ;;
  esac
  found=false
}

# Print new output of the hosts, and set `code`: running, or the run's exit code. The code of a host that failed takes
# precedence over those of the hosts that lost it (75).
relay() {
  local host=0 prefix='' answer
  code=0
  [ ! -e "$out/1.log" ] || prefix=true
  while [ -e "$out/$host.log" ]; do
    sed -e '/^mambaout-code /d' -e '/^$/d' -e "s/^/${prefix:+$host| }/" "$out/$host.log"
    answer=$(sed -n 's/^mambaout-code //p' "$out/$host.log")
    case $code:$answer in
      *:) return 1 ;;
      *:running) code=running ;;
      0:* | 75:[!0]*) code=$answer ;;
    esac
    host=$((host + 1))
  done
}

# Follow the run until it has ended on every host.
follow() {
  say "Following the log"
  while :; do
    on_hosts all "mambaout/launch/on_host.sh follow" || return
    if "$dry_run"; then code=0; else relay || return; fi
    failures=0
    [ "$code" = running ] || return 0
    pause
  done
}

# Handle a failed command on the hosts. If they do not exist anymore, await_hosts creates them again.
recover() {
  local reason
  reason=$(last_error)
  if ! update_state || [ "$state" != ACTIVE ]; then return; fi
  count_failure "the hosts of $name exist, but commands by ssh fail ($reason); try '$ssh_by_hand', and see docs/pods.md"
}

run_until_done() {
  while :; do
    await_hosts
    if "$found"; then find_run || { recover; continue; }; fi
    if ! "$started"; then
      { deploy && count_start && start; } || { recover; continue; }
      started=true
    fi
    follow || { recover; continue; }
    started=false
    case $code in
      0) say "Done"; return ;;
      75) say "The run was stopped or lost a process; restarting" ;;
      *)
        printf 'error: the run ended with exit code %s; see docs/config.md\n' "$code" >&2
        exit "$code" ;;
    esac
  done
}

interrupted() {
  trap '' INT TERM HUP
  if "$keep"; then
    say "$name and its run continue and cost money; rerun the same command to follow the run"
  else
    stop_run
  fi
  exit 75
}

end() {
  local status=$?
  trap '' INT TERM HUP
  if "$owned" && ! "$keep"; then
    say "Deleting $name"
    if ! delete; then
      printf 'error: %s could not be deleted and costs money (%s)\n' "$name" "$(last_error)" >&2
      [ "$status" -ne 0 ] || status=1
    fi
  elif "$owned"; then
    say "$name is kept and costs money"
  fi
  rm -rf "$scratch"
  exit "$status"
}
