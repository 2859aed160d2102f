#!/usr/bin/env bash
# Train on TPU7x, in a managed instance group of Compute Engine: see --help.
set -euo pipefail
# shellcheck source=launch/cloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/../cloud.sh"

help() {
  cat <<'TEXT'
Create a TPU7x slice on Compute Engine (a workload policy, an instance template and a managed instance group), install
this checkout on all hosts, train, follow the log, and restart after preemptions until the run is done. Then delete the
slice.

usage: launch/contrib/gce_mig.sh --name NAME --zone ZONE --topology AxBxC --config FILE --workdir PATH [option...]

  --name NAME         name of policy, template and group; an existing slice of this name is used
  --zone ZONE         for example us-central1-c
  --topology AxBxC    chips along each axis, four per host: 2x2x1 is one host, 2x2x2 two, 4x4x4 sixteen
  --config FILE       the experiment, a file in this checkout such as configs/imagenet.py:mambaout_tiny
  --workdir PATH      folder of the run: gs://BUCKET/... or an absolute path on a file system of all hosts
  --cache PATH        folder for compiled programs (default: `compiled` next to workdir); a bucket outlives the slice
  --project ID        (default: gcloud's)
  --spot              use spot capacity, which is cheaper and may be preempted at any time
  --reservation NAME  use this reservation
  --restarts N        allowed number of consecutive starts without a new checkpoint (default: 10)
  --keep              keep the slice when the launcher ends, and the run when it is interrupted
  --dry-run           print the commands without running them
  --help              print this
  --config.KEY=VALUE  passed to main.py, such as --config.data.data_dir=gs://BUCKET/datasets

MAMBAOUT_POLL_SECONDS is the polling interval for slice and log (default: 30). After Ctrl-C the run saves a checkpoint
and the slice is deleted. Exit codes: 0 done, 1 failed, 2 invalid input, 75 interrupted (rerun), others as in main.py.
TEXT
}

topology='' reservation='' spot=false
parse "--spot --keep --dry-run" \
  "--name --zone --topology --config --workdir --cache --project --reservation --restarts" "$@"
require name zone topology config workdir
check_run
case $topology in
  *[!0-9x]* | x* | *x | *xx* | *x*x*x*) size=0 ;;
  0* | *x0*) size=0 ;;
  *x*x*) size=$((${topology//x/*})) ;;
  *) size=0 ;;
esac
if [ "$size" -lt 4 ] || [ $((size % 4)) -ne 0 ]; then
  die "--topology is $topology; expected chips along three axes, four per host: 2x2x1, 2x2x2, 2x4x4, 4x4x4, ..."
fi
if "$spot" && [ -n "$reservation" ]; then die "--spot and --reservation are mutually exclusive"; fi
size=$((size / 4))

# The policy requires its full name with the project; gcloud rejects a bare name.
if [ -z "$project" ]; then
  if "$dry_run"; then project=PROJECT; else project=$(gcloud config get-value project 2>/dev/null || true); fi
  [ -n "$project" ] || die "--project is missing, and gcloud has no default project"
fi
what="a TPU7x slice of $topology"
where=(--zone="$zone" --project="$project")
region=${zone%-*}
hosts=()

read_state() {
  local host status
  if ! ask compute instance-groups managed list-instances "$name" "${where[@]}" \
    --format='value(instance.basename(),instanceStatus)' >"$scratch/answer"; then
    grep -qi 'not.found' "$scratch/errors" || return
    state=ABSENT
    return
  fi
  hosts=() state=ACTIVE
  if "$dry_run"; then pretend; return; fi
  while read -r host status; do
    hosts+=("$host")
    case $status in
      RUNNING) ;;
      STOPPING | STOPPED | TERMINATED | SUSPENDING | SUSPENDED) state=LOST ;;
      *) [ "$state" = LOST ] || state=WAITING ;;
    esac
  done <"$scratch/answer"
  # shellcheck disable=SC2034  # for cloud.sh
  ssh_by_hand="gcloud compute ssh ${hosts[0]-HOST} ${where[*]}"
  if [ "$state" = ACTIVE ] && [ "${#hosts[@]}" -lt "$size" ]; then state=WAITING; fi
  [ "$state" = WAITING ] || return 0
  # A group without enough quota retries forever.
  ask compute instance-groups managed list-errors "$name" "${where[@]}" --format='value(error.message)' --limit=1 \
    >"$scratch/answer" || true
  if grep -qi quota "$scratch/answer"; then
    state=FAILED
    cp "$scratch/answer" "$scratch/errors"
  fi
}

# Set the names of the hosts for --dry-run.
pretend() {
  local host
  if ! "$owned"; then state=ABSENT; return; fi
  for ((host = 0; host < size; host++)); do hosts+=("$name-host$host"); done
}

create() {
  local tier=() policy=()
  if "$spot"; then tier=(--provisioning-model=SPOT --instance-termination-action=STOP); fi
  if [ -n "$reservation" ]; then
    tier=(--provisioning-model=RESERVATION_BOUND --instance-termination-action=DELETE
      --reservation-affinity=specific --reservation="$reservation")
  fi
  # A single host needs no topology.
  if [ "$size" -gt 1 ]; then
    act compute resource-policies create workload-policy "$name" --region="$region" --project="$project" \
      --type=HIGH_THROUGHPUT --accelerator-topology="$topology" --accelerator-topology-mode=AUTO_CONNECT || return
    policy=(--workload-policy="projects/$project/regions/$region/resourcePolicies/$name" --target-size-policy-mode=bulk)
  fi
  act compute instance-templates create "$name" --project="$project" --machine-type=tpu7x-standard-4t \
    --image-project=ubuntu-os-accelerator-images --image-family=ubuntu-accel-2404-amd64-tpu-tpu7x \
    --boot-disk-size=100GB --boot-disk-type=hyperdisk-balanced --network-interface=nic-type=GVNIC \
    --maintenance-policy=TERMINATE --scopes=cloud-platform ${tier[@]+"${tier[@]}"} || return
  act compute instance-groups managed create "$name" "${where[@]}" --template="$name" --size="$size" \
    --default-action-on-vm-failure=do-nothing ${policy[@]+"${policy[@]}"}
}

delete() {
  gone act compute instance-groups managed delete "$name" "${where[@]}" --quiet &&
    gone act compute instance-templates delete "$name" --project="$project" --quiet &&
    { [ "$size" = 1 ] ||
      gone act compute resource-policies delete "$name" --region="$region" --project="$project" --quiet; }
}

gone() { "$@" || grep -qi 'not.found' "$scratch/errors"; }

copy() {
  local host
  for host in "${hosts[@]}"; do
    act compute scp "$1" "$host:" "${where[@]}" --quiet || return
  done
}

on_hosts() {
  local number failed=0 jobs=() names=("${hosts[@]}")
  [ "$1" = all ] || names=("${hosts[0]}")
  rm -f "$out"/*.log
  for number in "${!names[@]}"; do
    if "$dry_run"; then on_host "${names[$number]}" "$2"; continue; fi
    on_host "${names[$number]}" "$2" >"$out/$number.log" &
    jobs+=($!)
  done
  for number in ${jobs[@]+"${jobs[@]}"}; do wait "$number" || failed=$?; done
  return "$failed"
}

on_host() {
  ask compute ssh "$1" "${where[@]}" --quiet --ssh-flag=-oLogLevel=ERROR --command="$2"
}

begin
run_until_done
