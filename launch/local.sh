#!/usr/bin/env bash
# Install everything and train MambaOut on handwritten digits, on this machine: see --help.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

help() {
  cat <<'TEXT'
Train MambaOut on 1,437 handwritten digits and test it on 360 others: a few minutes, no accelerator or data needed.

usage: launch/local.sh [option...] [--config.KEY=VALUE...]

  --workdir DIR     folder of the run; an unfinished run is resumed (default: runs/digits)
  --jax KIND        install jax for cpu, cuda12, cuda13 or tpu (default: detected)
  --python PATH     use this Python, 3.11 or newer, and .venv-VERSION (default: the first one found)
  --dry-run         print the commands without running them
  --help            print this
  anything else     passed to main.py, for example --config.seed=1

The virtual environment is .venv in the repository, or $MAMBAOUT_VENV; it is created once and updated when the
requirements change. Exit codes: 0 done, 1 failed, 2 invalid input, 3 diverged, 75 stopped (rerun).
TEXT
}

# Print the kind of jax for this machine's accelerator.
find_accelerator() {
  local device vendor gpus kind
  for device in /sys/bus/pci/devices/*; do
    vendor=$(cat "$device/vendor" 2>/dev/null || true)
    # Google's PCI devices, except 0x0042: the network card of its machines.
    if [ "$vendor" = 0x1ae0 ] && [ "$(cat "$device/device")" != 0x0042 ]; then echo tpu; return; fi
  done
  gpus=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) || gpus=
  [ -n "$gpus" ] || { echo cpu; return; }
  # CUDA 13 needs driver 580 and compute capability 7.5; CUDA 12 needs driver 525.
  kind=$(awk -F '[., ]+' '{ cap = $(NF - 1) * 10 + $NF
    if ($1 < 525) none = 1; if ($1 < 580 || cap < 75) twelve = 1 }
    END { print none ? "cpu" : twelve ? "cuda12" : "cuda13" }' <<<"$gpus")
  [ "$kind" != cpu ] || echo "The NVIDIA driver is older than 525, which jax requires; training on the CPU." >&2
  echo "$kind"
}

workdir=$root/runs/digits kind='' pass=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help; exit ;;
    --dry-run) dry_run=true ;;
    --workdir | --jax | --python)
      [ $# -gt 1 ] || die "$1 requires a value; see launch/local.sh --help"
      case $1 in --workdir) workdir=$2 ;; --jax) kind=$2 ;; --python) base_python=$2 ;; esac
      shift ;;
    --workdir=*) workdir=${1#*=} ;;
    --jax=*) kind=${1#*=} ;;
    --python=*) base_python=${1#*=} ;;
    *) pass+=("$1") ;;
  esac
  shift
done
[ -n "$kind" ] || kind=$(find_accelerator)
case $kind in
  cpu) jax=() ;;
  cuda12 | cuda13 | tpu) jax=("jax[$kind]") ;;
  *) die "--jax is $kind; expected cpu, cuda12, cuda13 or tpu" ;;
esac

install "run-$kind" --editable "${root}[train]" ${jax[@]+"${jax[@]}"}

# Large buffers in 4 KiB pages cost a quarter of a step; glibc 2.35 or newer can request huge pages.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# Later starts reuse compiled programs.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$venv/compiled}

say "Training on handwritten digits ($kind)"
code=0
run "$python" "$root/main.py" --config="$root/configs/digits.py" --workdir="$workdir" ${pass[@]+"${pass[@]}"} || code=$?
case $code in
  0) ;;
  75) say "Stopped. Rerun the same command to continue."; exit 75 ;;
  *) exit "$code" ;;
esac

example=$workdir/example.png
"$dry_run" || "$python" - "$workdir" "$example" <<'PYTHON'
import json
import sys
from pathlib import Path

from mambaout_jax.run.workdir import load_config

workdir, example = map(Path, sys.argv[1:])
results = json.loads((workdir / "results.json").read_text())
best = results.get("ema", results["raw"])
print(f"\nTop-1 accuracy on {best['count']} validation images: {best['top1']:.2f} %")
config = load_config(workdir)
source = config.build_task().open_source(config.data.validation_split)
example.write_bytes(source[0]["image"])
PYTHON
say "Results"
echo "  report        $(show "$workdir/report.html")"
echo "  TensorBoard   $(show "$workdir/tensorboard")"
say "Next: classify a digit of the validation split"
echo "  $(show "$python") -m mambaout_jax predict $(show "$workdir") $(show "$example")"
