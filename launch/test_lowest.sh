#!/usr/bin/env bash
# Run the tests with the lowest versions that pyproject.toml allows: see --help.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

help() {
  cat <<'TEXT'
Install the lowest version of each direct requirement, and run the tests. Transitive requirements have their newest
versions, as pip would install them.

usage: launch/test_lowest.sh [option...] [pytest argument...]

  --python PATH     use this Python, 3.11 or newer (default: the first one found)
  --dry-run         print the commands without running them
  --help            print this
  anything else     passed to pytest, for example -k conv or tests/ops (default: the default tier)

Creates two virtual environments in .venv-lowest in the repository, or in $MAMBAOUT_VENV: `uv`, with uv, and `lowest`,
with the lowest versions of the requirements that have a wheel for this Python.
TEXT
}

marks="not nightly and not run and not slow and not torch" pass=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help; exit ;;
    --dry-run) dry_run=true ;;
    --python)
      [ $# -gt 1 ] || die "--python requires a value; see launch/test_lowest.sh --help"
      base_python=$2
      shift ;;
    --python=*) base_python=${1#*=} ;;
    *) pass+=("$1") ;;
  esac
  shift
done

folder=${MAMBAOUT_VENV:-$root/.venv-lowest}
MAMBAOUT_VENV=$folder/uv
install uv uv
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac

say "Installing the lowest versions"
uv=("$venv/bin/uv" --quiet)
run "${uv[@]}" venv --clear --python "$python" "$folder/lowest"
python=$folder/lowest/bin/python
# promise, which tensorflow-datasets requires, has no wheel.
run "${uv[@]}" pip install --python "$python" --resolution lowest-direct --only-binary :all: --no-binary promise \
  --requirements "$root/pyproject.toml" --extra train --extra test
run "${uv[@]}" pip install --python "$python" --no-deps --editable "$root"

say "Testing"
run cd "$root"
run "$python" -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "$marks" ${pass[@]+"${pass[@]}"}
