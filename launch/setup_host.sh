#!/usr/bin/env bash
# Install the program and the tested versions of its requirements on a host: see --help.
set -euo pipefail
# shellcheck source=launch/shell.sh
. "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

uv_version=0.13.9

help() {
  cat <<TEXT
Create .venv in this checkout with Python 3.12 and the versions in launch/constraints.txt, and print them. The images of
TPU hosts have Python 3.10, for which pip silently installs an old jax, so uv installs a newer Python.

usage: launch/setup_host.sh [option...]

  --jax KIND   tpu or cpu (default: tpu)
  --dry-run    print the commands without running them
  --help       print this

uv is looked up in PATH and ~/.local/bin; if it is missing, version $uv_version is installed into ~/.local/bin.
TEXT
}

kind=tpu
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help; exit ;;
    --dry-run) dry_run=true ;;
    --jax)
      [ $# -gt 1 ] || die "--jax requires a value; see launch/setup_host.sh --help"
      kind=$2
      shift ;;
    --jax=*) kind=${1#*=} ;;
    *) die "$1 is not an option of setup_host.sh; see --help" ;;
  esac
  shift
done
case $kind in
  tpu) jax='jax[tpu]' ;;
  cpu) jax=jax ;;
  *) die "--jax is $kind; expected tpu or cpu" ;;
esac
platform="$(uname -s) $(uname -m)"
[ "$platform" = "Linux x86_64" ] || die "this host is $platform; launch/constraints.txt was resolved for Linux x86_64"

export PATH=$HOME/.local/bin:$PATH
if ! command -v uv >/dev/null; then
  say "Installing uv"
  run bash -c "curl -LsSf https://astral.sh/uv/$uv_version/install.sh | env UV_INSTALL_DIR=\$HOME/.local/bin sh"
fi

say "Installing"
run uv venv --quiet --python=3.12 --allow-existing "$root/.venv"
# etils[epath-gcs] opens gs:// for checkpoints, datasets and compiled programs.
run uv pip install --quiet --python="$root/.venv" --constraint="$root/launch/constraints.txt" --editable "${root}[train]" \
  "$jax" 'etils[epath-gcs]'

# Read without importing jax, because another program may use the devices.
names="jax jaxlib flax orbax-checkpoint grain numpy mambaout_jax"
[ "$kind" = cpu ] || names="libtpu $names"
run "$root/.venv/bin/python" -c "import platform; from importlib.metadata import version; \
print('Python', platform.python_version(), *(f'{name} {version(name)}' for name in '$names'.split()))"
