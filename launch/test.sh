#!/usr/bin/env bash
# Run the tests, on this machine, from nothing: see --help.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

help() {
  cat <<'TEXT'
Create a virtual environment, install the requirements of the tests, and run them.

usage: launch/test.sh [option...] [pytest argument...]

  --all             also run tests that take longer (marker: slow), end-to-end runs, and tests that start, signal and
                    kill processes (marker: run)
  --torch           also install PyTorch, timm and transformers, and run the tests that compare with them (marker:
                    torch)
  --python PATH     use this Python, 3.11 or newer, and .venv-VERSION (default: the first one found)
  --dry-run         print the commands without running them
  --help            print this
  anything else     passed to pytest, for example -k conv or tests/ops; -m MARKER runs only that tier

The virtual environment is .venv in the repository, or $MAMBAOUT_VENV, and is shared with launch/local.sh.
On Linux the default PyTorch includes gigabytes of CUDA libraries; to avoid them, set PIP_EXTRA_INDEX_URL to PyTorch's
index of CPU builds.
TEXT
}

all=false torch=false pass=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help; exit ;;
    --dry-run) dry_run=true ;;
    --all) all=true ;;
    --torch) torch=true ;;
    --python)
      [ $# -gt 1 ] || die "--python requires a value; see launch/test.sh --help"
      base_python=$2
      shift ;;
    --python=*) base_python=${1#*=} ;;
    *) pass+=("$1") ;;
  esac
  shift
done
if "$torch"; then
  # The versions that the comparisons were made with.
  install test-torch --editable "${root}[train,test,torch]" torch==2.13.0 timm==1.0.31 transformers==5.23.0
else
  install test --editable "${root}[train,test]"
fi

marks="not nightly"
"$all" || marks+=" and not run and not slow"
"$torch" || marks+=" and not torch"
say "Testing"
run cd "$root"
run "$python" -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "$marks" ${pass[@]+"${pass[@]}"}
