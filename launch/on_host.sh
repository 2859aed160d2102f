#!/usr/bin/env bash
# Commands on a host for the Google Cloud launchers, called by ssh: see --help.
set -euo pipefail
# shellcheck source=launch/shell.sh
. "$(dirname "${BASH_SOURCE[0]}")/shell.sh"
cd "$root"

help() {
  cat <<'TEXT'
Run a command on a host independently of the connection. Its log, process and exit code are files in the checkout.

usage: launch/on_host.sh start COMMAND...   start a run unless there is one
       launch/on_host.sh follow             print new log output, then "mambaout-code" and its exit code,
                                            "running", or 75 if it ended without one
       launch/on_host.sh running            print "mambaout-running", and "yes" or "no"
       launch/on_host.sh stop               stop it within two minutes, after it has saved a checkpoint
       launch/on_host.sh step WORKDIR       print "mambaout-step" and the newest checkpoint of a workdir (-1: none)
TEXT
}

# Set `run`, the pid of the run, and succeed if it or the process that waits for it exists. Pids are reused after a
# reboot, so the boot id is compared.
is_running() {
  local waiter boot
  if [ -e run.code ] || [ ! -s run.pid ]; then return 1; fi
  read -r run waiter boot <run.pid
  [ "$boot" = "$(</proc/sys/kernel/random/boot_id)" ] && kill -0 "$run" "$waiter" 2>/dev/null
}

# The waiting process writes the code before it ends, and the log is read last, so both are complete.
follow() {
  local code=running seen size
  is_running || code=75
  [ ! -e run.code ] || code=$(cat run.code)
  seen=$(cat run.seen)
  size=$(wc -c <run.log)
  tail -c "+$((seen + 1))" run.log | head -c "$((size - seen))"
  echo "$size" >run.seen
  printf '\nmambaout-code %s\n' "$code"
}

start() {
  ! is_running || return 0
  rm -f run.code run.pid
  : >run.log
  echo 0 >run.seen
  # shellcheck disable=SC2016  # for the shell that is started
  setsid nohup bash -c '"$@" & echo "$! $$ $(</proc/sys/kernel/random/boot_id)" >run.pid
    wait $!; echo $? >run.part; mv run.part run.code' run "$@" >run.log 2>&1 </dev/null &
  # The next call needs the pid.
  while [ ! -s run.pid ] && kill -0 $! 2>/dev/null; do sleep 0.05; done
  [ -s run.pid ]
}

stop() {
  local tick
  is_running || return 0
  kill -TERM "$run" 2>/dev/null || true
  for ((tick = 0; tick < 600; tick++)); do
    is_running || return 0
    sleep 0.2
  done
}

case ${1-} in
  start) shift; start "$@" ;;
  follow) follow ;;
  running) if is_running; then echo "mambaout-running yes"; else echo "mambaout-running no"; fi ;;
  stop) stop ;;
  step)
    # A bucket that does not respond would block forever.
    timeout 120 .venv/bin/python - "$2" <<'PYTHON'
import sys

from etils import epath

folder = epath.Path(sys.argv[1]) / "checkpoints"
names = [path.name for path in folder.iterdir()] if folder.exists() else []
print("mambaout-step", max((int(name) for name in names if name.isdecimal()), default=-1))
PYTHON
    ;;
  --help | -h) help ;;
  *) die "unknown action '${1-}'; see launch/on_host.sh --help" ;;
esac
