#!/usr/bin/env bash
# What the launchers of Google Cloud do on a host, by ssh: see the text of --help.
set -euo pipefail
# shellcheck source=launch/shell.sh
. "$(dirname "${BASH_SOURCE[0]}")/shell.sh"
cd "$root"

help() {
  cat <<'TEXT'
Hold a run on a host that outlives the connection. Its log, process and exit code are files of the checkout.

usage: launch/on_host.sh start COMMAND...   start a run
       launch/on_host.sh follow             print what it said since the last time, then "mambaout-code", and its exit
                                            code or "running"
       launch/on_host.sh running            succeed if it runs
       launch/on_host.sh stop               have it save and end, within two minutes
       launch/on_host.sh step WORKDIR       print "mambaout-step" and the newest checkpoint of a workdir (-1: none)
TEXT
}

# The code is read first, so that the log is whole where there is one.
follow() {
  local code=running seen size
  [ ! -e run.code ] || code=$(cat run.code)
  seen=$(cat run.seen)
  size=$(wc -c <run.log)
  tail -c "+$((seen + 1))" run.log | head -c "$((size - seen))"
  echo "$size" >run.seen
  printf '\nmambaout-code %s\n' "$code"
}

start() {
  rm -f run.code
  : >run.log
  echo 0 >run.seen
  # shellcheck disable=SC2016  # for the shell that is started
  setsid nohup bash -c '"$@" & echo $! >run.pid; wait $!; echo $? >run.part; mv run.part run.code' \
    run "$@" >run.log 2>&1 </dev/null &
}

stop() {
  local second
  kill -TERM "$(cat run.pid)"
  for ((second = 0; second < 120; second++)); do
    [ ! -e run.code ] || return 0
    sleep 1
  done
}

case ${1-} in
  start) shift; start "$@" ;;
  follow) follow ;;
  running) [ -e run.pid ] && kill -0 "$(cat run.pid)" ;;
  stop) stop ;;
  step)
    # A bucket that does not answer would hang for ever.
    timeout 120 .venv/bin/python - "$2" <<'PYTHON'
import sys

from etils import epath

folder = epath.Path(sys.argv[1]) / "checkpoints"
names = [path.name for path in folder.iterdir()] if folder.exists() else []
print("mambaout-step", max((int(name) for name in names if name.isdecimal()), default=-1))
PYTHON
    ;;
  --help | -h) help ;;
  *) die "${1-nothing} is nothing to do; launch/on_host.sh --help tells what there is" ;;
esac
