#!/usr/bin/env bash
# Install the package in clean environments, and check the result: see --help.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

help() {
  cat <<'TEXT'
Build the sdist, and the wheel from it, and install the wheel in a clean environment for each case and Python.
`pip check` must report no conflicts.

usage: launch/test_install.sh [option...] [CASE...]

  core       no extra: build a model, run it, convert its weights; print the number of packages
  train      [train]: write a page with plots; train for an epoch with the installed command and config
  gradio     [demo]: build the app and classify a picture with it
  notebook   [train], and notebook
  torch      [train,torch] with PyTorch 2.13 and timm, on Python 3.11

  --python PATH     use this Python (default: Python 3.11 and 3.13)
  --dry-run         print the commands without running them
  --help            print this

The default is all cases. The environments are in a temporary folder and are deleted.
TEXT
}

pythons=() cases=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help; exit ;;
    --dry-run) dry_run=true ;;
    --python)
      [ $# -gt 1 ] || die "--python requires a value; see launch/test_install.sh --help"
      pythons+=("$2")
      shift ;;
    --python=*) pythons+=("${1#*=}") ;;
    core | train | gradio | notebook | torch) cases+=("$1") ;;
    *) die "$1 is not an option or a case of test_install.sh; see --help" ;;
  esac
  shift
done
[ "${#cases[@]}" -gt 0 ] || cases=(core train gradio notebook torch)

# Print the Python of a version: on PATH, or of pyenv.
find_version() {
  local candidate
  for candidate in "python3.$1" python3 "$HOME/.pyenv/versions/3.$1."*/bin/python; do
    if python_between "$candidate" "(3, $1)" "(3, $(($1 + 1)))"; then command -v "$candidate"; return; fi
  done
  die "no Python 3.$1 was found on the PATH or in pyenv; install it, or name another with --python"
}

if [ "${#pythons[@]}" -eq 0 ]; then
  for minor in 11 13; do pythons+=("$(find_version "$minor")"); done
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Install the wheel with extras, and other packages, into an empty environment: fresh PYTHON EXTRAS PACKAGE...
fresh() {
  local base=$1 extras=$2
  shift 2
  python=$scratch/venv/bin/python
  run "$base" -m venv --clear "$scratch/venv"
  run "$python" -m pip install --disable-pip-version-check --quiet "$wheel$extras" "$@"
  run "$python" -m pip check
}

check_core() {
  run rm -rf "$scratch/core"
  run "$python" - "$scratch/core" <<'PYTHON'
import json
import sys
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

import mambaout_jax as mo

assert "site-packages" in mo.__file__, mo.__file__  # not the checkout
folder = Path(sys.argv[1])
folder.mkdir()
model = mo.create_model("mambaout_femto", num_classes=10, img_size=64)
variables = model.init(jax.random.key(0))
images = np.ones((1, 64, 64, 3), np.float32)
logits = model.apply(variables, images)
save_file(mo.to_torch(model, variables), folder / "model.safetensors")
(folder / "config.json").write_text(json.dumps({"architecture": model.name, "num_classes": 10}))
for read in (mo.from_torch(model, folder / "model.safetensors"), mo.load_pretrained(str(folder))[1]):
    assert np.array_equal(model.apply(read, images), logits)
packages = sorted({distribution.name for distribution in metadata.distributions()} - {"pip", "setuptools"})
print(f"core: {len(packages)} packages: {' '.join(packages)}")
unwanted = {"tensorflow-datasets", "grain", "opencv-python-headless", "scikit-learn", "matplotlib"} & {*packages}
assert not unwanted, unwanted
PYTHON
  run "$python" -m mambaout_jax models
  run "$scratch/venv/bin/mambaout_jax" --version
}

check_app() {
  run "$python" - "$scratch/app" <<'PYTHON'
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

import mambaout_jax as mo
from mambaout_jax.demo.app import build_app, serving
from mambaout_jax.export.torch import import_weights
from mambaout_jax.weights import write_folder

folder = Path(sys.argv[1])
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
model = mo.create_model("test_mambaout", num_classes=5)
write_folder(str(folder / "weights"), model, mo.to_torch(model, model.init(jax.random.key(0))))
import_weights(str(folder / "weights"), folder / "run")
Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(folder / "a.png")
with serving(build_app([str(folder / "run")]), 0) as address:
    found = Client(address, verbose=False).predict(handle_file(folder / "a.png"), api_name="/predict")
assert found.count("%") >= 5, found
PYTHON
}

check_case() {
  case $2 in
    core)
      fresh "$1" ''
      check_core ;;
    train)
      fresh "$1" '[train]'
      run "$python" -m mambaout_jax analyze mambaout_tiny --out "$scratch/page"
      run rm -rf "$scratch/digits"
      run "$scratch/venv/bin/mambaout_jax" train --config=digits --workdir="$scratch/digits" \
        --config.num_epochs=1 --config.optim.warmup_epochs=0 ;;
    gradio)
      fresh "$1" '[demo]'
      check_app ;;
    notebook) fresh "$1" '[train]' notebook ;;
    torch)
      if ! python_between "$1" '(3, 11)' '(3, 12)'; then return; fi
      fresh "$1" '[train,torch]' torch==2.13.0 timm==1.0.31
      # A torchvision that was built for another torch lacks operators, without which timm cannot be imported.
      run "$python" -c 'import torch
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
import timm' ;;
  esac
}

say "Building the sdist and the wheel"
# In a copy: setuptools leaves `build` and `*.egg-info` behind, and would add files from an old `build`.
mkdir "$scratch/source"
run cp -R "$root/mambaout_jax" "$root/configs" "$root/setup.py" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$root/NOTICE" \
  "$scratch/source"
run "${pythons[0]}" -m venv "$scratch/build"
run "$scratch/build/bin/python" -m pip install --disable-pip-version-check --quiet build
run "$scratch/build/bin/python" -m build --outdir "$scratch" "$scratch/source"
wheel=$(echo "$scratch"/mambaout_jax-*.whl)
run cd "$scratch"
for base in "${pythons[@]}"; do
  for name in "${cases[@]}"; do
    say "$name, $("$base" --version)"
    check_case "$base" "$name"
  done
done
say "Done"
