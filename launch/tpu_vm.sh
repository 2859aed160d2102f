#!/usr/bin/env bash
# Train on a Cloud TPU slice from the first request to the end of the run: see --help.
set -euo pipefail
# shellcheck source=launch/cloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

help() {
  cat <<'TEXT'
Request a Cloud TPU slice, wait for it, install this checkout on all its hosts, train, follow the log, and restart
after preemptions until the run is done. Then delete the slice.

usage: launch/tpu_vm.sh --name NAME --zone ZONE --accelerator TYPE --config FILE --workdir PATH [option...]

  --name NAME         name of the queued resource and its TPU; an existing slice of this name is used
  --zone ZONE         for example us-west4-a
  --accelerator TYPE  v4-32, v5litepod-16, v5p-32, v6e-16, ...; the number counts chips for v5litepod and v6e, and cores
                      (two per chip) for v4 and v5p. For TPU7x use launch/contrib/gce_mig.sh
  --config FILE       the experiment, a file in this checkout such as configs/imagenet.py:mambaout_tiny
  --workdir PATH      folder of the run: gs://BUCKET/... or an absolute path on a file system of all hosts
  --cache PATH        folder for compiled programs (default: `compiled` next to workdir); a bucket outlives the slice
  --project ID        (default: gcloud's)
  --runtime VERSION   version of the hosts' image (default: by accelerator)
  --spot              use spot capacity, which is cheaper and may be preempted at any time
  --restarts N        allowed number of consecutive starts without a new checkpoint (default: 10)
  --keep              keep the slice when the launcher ends, and the run when it is interrupted
  --dry-run           print the commands without running them
  --help              print this
  --config.KEY=VALUE  passed to main.py, such as --config.data.data_dir=gs://BUCKET/datasets

MAMBAOUT_POLL_SECONDS is the polling interval for slice and log (default: 30). After Ctrl-C the run saves a checkpoint
and the slice is deleted. Exit codes: 0 done, 1 failed, 2 invalid input, 75 interrupted (rerun), others as in main.py.
TEXT
}

accelerator='' runtime='' spot=false
parse "--spot --keep --dry-run" \
  "--name --zone --accelerator --config --workdir --cache --project --runtime --restarts" "$@"
require name zone accelerator config workdir
check_run

if [ -z "$runtime" ]; then
  # https://cloud.google.com/tpu/docs/runtimes
  case $accelerator in
    *-*[!0-9]* | *-) ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    tpu7x* | v7*) die "--accelerator is $accelerator, which has no queued resources; use launch/contrib/gce_mig.sh" ;;
  esac
  [ -n "$runtime" ] || die "--accelerator is $accelerator; expected v4-N, v5litepod-N, v5p-N or v6e-N, or set the" \
    "image of its hosts with --runtime"
fi
what="$accelerator"
where=(--zone="$zone" ${project:+--project="$project"})
ssh_by_hand="gcloud compute tpus tpu-vm ssh $name ${where[*]}"

read_state() {
  local answer=''
  if ! ask compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' \
    >"$scratch/answer"; then
    grep -q NOT_FOUND "$scratch/errors" || return
  elif "$dry_run"; then
    ! "$owned" || answer=ACTIVE
  else
    answer=$(cat "$scratch/answer")
  fi
  case $answer in
    '') state=ABSENT ;;
    ACTIVE) read_node ;;
    SUSPENDED) state=LOST ;;
    FAILED)
      state=FAILED
      ask compute tpus queued-resources describe "$name" "${where[@]}" \
        --format='value(state.failedData.error.message)' >"$scratch/answer" || true
      cp "$scratch/answer" "$scratch/errors" ;;
    *) state=$answer ;;
  esac
}

# A preempted slice may stay ACTIVE in the queue for a while.
read_node() {
  ask compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' >"$scratch/answer" ||
    grep -q NOT_FOUND "$scratch/errors" || return
  ! "$dry_run" || echo READY >"$scratch/answer"
  case $(cat "$scratch/answer") in
    READY) state=ACTIVE ;;
    CREATING | STARTING | RESTARTING | REPAIRING) state=PROVISIONING ;;
    *) state=LOST ;;
  esac
}

create() {
  local tier=()
  ! "$spot" || tier=(--spot)
  act compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" --accelerator-type="$accelerator" \
    --runtime-version="$runtime" ${tier[@]+"${tier[@]}"}
}

delete() {
  act compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet ||
    grep -q NOT_FOUND "$scratch/errors"
}

copy() { act compute tpus tpu-vm scp "$1" "$name:" "${where[@]}" --worker=all --quiet; }

on_hosts() {
  rm -f "$out"/*.log
  ask compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --output-directory="$out" --quiet \
    --ssh-flag=-oLogLevel=ERROR --command="$2"
}

begin
run_until_done
