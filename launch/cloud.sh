# shellcheck shell=bash
# Sourced by the launchers of Google Cloud: run a command on preemptible hosts until it is done. A launcher sets
# `command` and `what`, a description of the hosts, and defines the functions that differ between services:
#   read_state           set `state`: ABSENT, WAITING, ACTIVE, LOST (delete and create it again) or FAILED;
#                        fail if gcloud does not print it
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
found=true      # whether hosts existed before the launcher; they may have a run
deployed=false  # whether the hosts have the program
started=false   # whether they run the command
told=''         # the last printed state
newest=-2       # the newest checkpoint when the run was last started; -1 for none
idle=0          # starts since then without a new checkpoint
troubles=0      # consecutive failed commands while hosts existed or may have existed
pass=()         # --config.KEY=VALUE

# The files that hosts need; no others are copied.
code_files=(main.py configs launch mambaout_jax pyproject.toml requirements.txt README.md LICENSE)

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Read the arguments. $1: switches; $2: options with a value; --a-key sets the variable a_key.
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

need() {
  local key
  for key in "$@"; do [ -n "${!key}" ] || die "--${key//_/-} is missing; --help tells more"; done
  if [[ -n ${name:-} && ! $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]]; then
    die "--name is $name; small letters, digits and dashes are expected, a letter first"
  fi
  "$dry_run" || command -v gcloud >/dev/null || die "gcloud is not on the PATH; install the Google Cloud CLI first"
}

# Check the options of every training launcher.
check_run() {
  [[ $restarts =~ ^[0-9]{1,6}$ ]] || die "--restarts is $restarts; a number is expected"
  while [[ $workdir == ?*/ && $workdir != gs:// ]]; do workdir=${workdir%/}; done
  case $workdir in
    gs://[!/]*/?* | /*) ;;
    *) die "--workdir is $workdir; all hosts share it: gs://BUCKET/... or the absolute path of a mounted file system" ;;
  esac
  # No other files of the checkout are copied to hosts.
  if [[ ${config%%:*} != configs/*.py || $config == *..* || ! -f $root/${config%%:*} ]]; then
    die "--config is $config; a file of $root/configs is expected, such as configs/imagenet.py:mambaout_tiny"
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

# Run a gcloud command that changes something; always printed.
act() {
  rm -f "$out"/*.log
  run gcloud "$@" 2>"$scratch/complaints"
}

# Run a gcloud query; printed only by --dry-run.
ask() {
  if "$dry_run"; then run gcloud "$@" >&3; else gcloud "$@" 2>"$scratch/complaints"; fi
}

# Print one line about a failure: the last line of a host, or gcloud's first error.
last_words() {
  local words
  words=$(cat "$out"/*.log 2>/dev/null | grep -v '^ *$' | tail -n 1 || true)
  [ -n "$words" ] || words=$(grep ERROR "$scratch/complaints" | head -n 1 || true)
  [ -n "$words" ] || words=$(tail -n 1 "$scratch/complaints")
  printf '%s' "${words#ERROR: }"
}

# Sleep so that signals are handled immediately.
pause() {
  "$dry_run" || { sleep "${MAMBAOUT_POLL_SECONDS:-30}" & wait $!; }
}

refuse() {
  local words
  rm -f "$out"/*.log
  words=$(last_words)
  case ${words:=gcloud gives no reason} in
    *[Qq]uota*) fail "the project's quota does not allow $what in $zone ($words); ask for more on the console's page" \
      "IAM & Admin > Quotas, or choose another zone or size" ;;
    *) fail "$what in $zone is not available: $words" ;;
  esac
}

# Stop a run, if there is one, so that it saves a checkpoint.
save() {
  "$owned" && { "$deployed" || "$found"; } || return 0
  say "Stopping; the run saves a checkpoint"
  on_hosts all "mambaout/launch/on_host.sh stop" || true
}

# Count consecutive failures, and fail the fifth time with the message $*.
trouble() {
  troubles=$((troubles + 1))
  if [ "$troubles" -lt 5 ]; then pause; return; fi
  "$keep" || save
  fail "$@"
}

# Read the state. A failing gcloud says nothing about the hosts.
look() {
  local words
  rm -f "$out"/*.log
  read_state && return
  words="gcloud cannot tell the state of $name: $(last_words)"
  "$owned" || fail "$words"
  trouble "$words"
  return 1
}

# Wait for the hosts, and create them if they are missing or were preempted.
await_hosts() {
  while :; do
    look || continue
    if [ "$state" != "$told" ]; then say "$name is $state"; told=$state; fi
    [ "$state" = ACTIVE ] || found=false deployed=false started=false troubles=0
    owned=true
    case $state in
      ACTIVE) return ;;
      ABSENT) create || refuse; pause ;;
      LOST) delete || fail "$name was preempted and cannot be deleted: $(last_words)" ;;
      FAILED) refuse ;;
      *) pause ;;
    esac
  done
}

deploy() {
  "$deployed" && return
  say "Installing on every host (some minutes)"
  run tar --exclude=__pycache__ -czf "$scratch/mambaout.tar.gz" -C "$root" "${code_files[@]}" &&
    copy "$scratch/mambaout.tar.gz" &&
    on_hosts all "mkdir -p mambaout && tar -xzf mambaout.tar.gz -C mambaout && mambaout/launch/setup_host.sh$setup" ||
    return
  "$dry_run" || tail -n 1 "$out/0.log"
  deployed=true
}

# Read the newest checkpoint on host 0, as the workdir may not be visible to this machine; fail after too many starts
# without a new one.
count_start() {
  local step
  [ -n "$workdir" ] || return 0
  on_hosts 0 "mambaout/launch/on_host.sh step $(quote "$workdir")" || return
  "$dry_run" && return
  step=$(sed -n 's/^mambaout-step //p' "$out/0.log")
  [ -n "$step" ] || return
  if [ "$step" -gt "$newest" ]; then newest=$step idle=0; else idle=$((idle + 1)); fi
  [ "$idle" -le "$restarts" ] || fail "$((idle + 1)) starts brought no checkpoint after step $newest of $workdir;" \
    "look at the log above, save more often with --config.save_every_steps, or allow more with --restarts"
}

start() {
  local word line=''
  for word in "${command[@]}"; do line="$line $(quote "$word")"; done
  say "Starting the run"
  on_hosts all "mambaout/launch/on_host.sh start$line"
}

# Find the run of an earlier launcher, after --keep or the loss of its machine. A host without the program has no run.
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

# Print new output of the hosts, and set `code`: running, or the run's exit code. The code of a host that failed is
# preferred to those of the hosts that lost it (75).
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
    troubles=0
    [ "$code" = running ] || return 0
    pause
  done
}

# Find out why a command on the hosts failed. If they are gone, await_hosts creates them again.
recover() {
  local words
  words=$(last_words)
  if ! look || [ "$state" != ACTIVE ]; then return; fi
  trouble "the hosts of $name are there, but commands sent to them by ssh fail ($words); try '$ssh_by_hand', and see" \
    "docs/pods.md"
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
      75) say "The run was stopped or lost a process; restarting it" ;;
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
    save
  fi
  exit 75
}

end() {
  local status=$?
  trap '' INT TERM HUP
  if "$owned" && ! "$keep"; then
    say "Deleting $name"
    if ! delete; then
      printf 'error: %s could not be deleted and costs money (%s)\n' "$name" "$(last_words)" >&2
      [ "$status" -ne 0 ] || status=1
    fi
  elif "$owned"; then
    say "$name is kept and costs money"
  fi
  rm -rf "$scratch"
  exit "$status"
}
