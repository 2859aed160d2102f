#!/usr/bin/env bash
# Prepare ImageNet for training, from bucket to bucket, on a machine without accelerator: see --help.
set -euo pipefail
# shellcheck source=launch/cloud.sh
. "$(dirname "${BASH_SOURCE[0]}")/cloud.sh"

help() {
  cat <<'TEXT'
Create a machine, copy ImageNet's two official tars to it, check them, write the dataset with
`python -m mambaout_jax prepare imagenet`, upload it, and delete the machine.

usage: launch/prepare_imagenet.sh --name NAME --zone ZONE --tars PATH --data-dir PATH [option...]

  --name NAME       name of the machine; an existing machine of this name is used and resumes
  --zone ZONE       near the bucket, for example us-west4-a
  --tars PATH       folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar: gs://BUCKET/imagenet
  --data-dir PATH   output folder: gs://BUCKET/datasets
  --machine TYPE    (default: n2-standard-16)
  --project ID      (default: gcloud's)
  --keep            keep the machine when the launcher ends, and its work when it is interrupted
  --dry-run         print the commands without running them
  --help            print this

MAMBAOUT_POLL_SECONDS is the polling interval for machine and log (default: 30). Exit codes: 0 done, 1 failed,
2 invalid input, 75 interrupted (rerun).
TEXT
}

tars='' data_dir='' machine=n2-standard-16
parse "--keep --dry-run" "--name --zone --tars --data-dir --machine --project" "$@"
require name zone tars data_dir
[ "${#pass[@]}" -eq 0 ] || die "${pass[0]} is an option of training runs; this launcher only prepares a dataset"
case $tars in gs://?*) ;; *) die "--tars is $tars; expected gs://BUCKET/FOLDER" ;; esac
case $data_dir in gs://?*) ;; *) die "--data-dir is $data_dir; expected gs://BUCKET/FOLDER" ;; esac

what="an instance of type $machine"
where=(--zone="$zone" ${project:+--project="$project"})
ssh_by_hand="gcloud compute ssh $name ${where[*]}"
setup=' --jax=cpu'
folder=$(quote "${tars%/}")
command=(env JAX_PLATFORMS=cpu bash -c "mkdir -p imagenet && gcloud storage cp --no-clobber \
$folder/ILSVRC2012_img_train.tar $folder/ILSVRC2012_img_val.tar imagenet/ && exec .venv/bin/python -m mambaout_jax \
prepare imagenet --tars imagenet --data-dir=$(quote "$data_dir")")

read_state() {
  if ! ask compute instances describe "$name" "${where[@]}" --format='value(status)' >"$scratch/answer"; then
    grep -qi 'not.found' "$scratch/errors" || return
    echo ABSENT >"$scratch/answer"
  elif "$dry_run"; then
    if "$owned"; then echo RUNNING; else echo ABSENT; fi >"$scratch/answer"
  fi
  state=$(cat "$scratch/answer")
  case $state in
    RUNNING) state=ACTIVE ;;
    STOPPING | STOPPED | TERMINATED | SUSPENDING | SUSPENDED) state=LOST ;;
  esac
}

create() {
  # The tars take 155 GB and the dataset 145 GB; see docs/imagenet.md.
  act compute instances create "$name" "${where[@]}" --machine-type="$machine" --image-project=ubuntu-os-cloud \
    --image-family=ubuntu-2404-lts-amd64 --boot-disk-size=400GB --boot-disk-type=pd-ssd --scopes=cloud-platform
}

delete() {
  act compute instances delete "$name" "${where[@]}" --quiet || grep -qi 'not.found' "$scratch/errors"
}

copy() { act compute scp "$1" "$name:" "${where[@]}" --quiet; }

on_hosts() {
  ask compute ssh "$name" "${where[@]}" --quiet --ssh-flag=-oLogLevel=ERROR --command="$2" >"$out/0.log"
}

begin
run_until_done
