# shellcheck shell=bash
# Sourced by the launchers for this machine: find a Python, create the virtual environment, install. It sets `python`.

# shellcheck source=launch/shell.sh
. "$(dirname "${BASH_SOURCE[0]}")/shell.sh"
base_python=''

# Check that $1 starts (a pyenv shim exists even when its version does not) and its version is in [$2, $3).
python_between() {
  "$1" -c "import sys; sys.exit(not $2 <= sys.version_info < $3)" >/dev/null 2>&1
}

# Print the Python to use: the active one if its version is tested, else another tested version, else any newer one.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    python_between "$name" '(3, 11)' '(3, 14)' && { command -v "$name"; return; }
  done
  python_between python3 '(3, 14)' '(4,)' && command -v python3
}

check_python() {
  python_between "$1" '(3, 11)' '(4,)' || die "$1 is not Python 3.11 or newer; pass a newer one with --python"
  "$1" -c 'import venv, ensurepip' >/dev/null 2>&1 || die "$1 lacks the module venv; on Debian and Ubuntu, install it" \
    "with 'sudo apt install python3-venv' (or python3.11-venv for that version)"
  local platform
  platform=$("$1" -c 'import platform; print(platform.system(), platform.machine())')
  case $platform in
    "Linux x86_64" | "Linux aarch64" | "Darwin arm64") ;;
    *) die "jax is built for Linux (x86_64, aarch64) and for Macs with Apple silicon; this Python is for $platform" ;;
  esac
}

# Create the environment with the Python of --python, and install, unless the last call did the same.
#   install NAME PIP_ARGUMENT...    NAME identifies the requirements of a launcher
install() {
  local name=$1 base=$base_python low='(3, 11)' high='(4,)' stamp want quiet=()
  shift
  venv=${MAMBAOUT_VENV:-$root/.venv}
  if [ -n "$base" ]; then
    check_python "$base"
    low=$("$base" -c 'import sys; print(sys.version_info[:2])')
    high="(3, $("$base" -c 'import sys; print(sys.version_info[1] + 1)'))"
    venv=${MAMBAOUT_VENV:-$root/.venv-$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
  fi
  case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
  python=$venv/bin/python
  if ! python_between "$python" "$low" "$high"; then
    if [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
      die "$venv is not a virtual environment; set MAMBAOUT_VENV to another folder"
    fi
    if [ -z "$base" ]; then
      base=$(find_python) || die "no Python 3.11 or newer was found on the PATH; install one, for example with" \
        "'sudo apt install python3 python3-venv' or 'brew install python@3.13', or set --python"
      check_python "$base"
    fi
    say "Creating a virtual environment in $(show "$venv")"
    run "$base" -m venv --clear "$venv"
  fi
  stamp=$venv/installed-$name
  want=$(printf '%s\n' "$root" "$@"; cat "$root/requirements.txt" "$root/pyproject.toml")
  [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] || return 0
  say "Installing (a few minutes the first time)"
  [ -t 1 ] || quiet=(--quiet)
  run "$python" -m pip install --disable-pip-version-check ${quiet[@]+"${quiet[@]}"} "$@"
  "$dry_run" || printf '%s\n' "$want" >"$stamp"
}
