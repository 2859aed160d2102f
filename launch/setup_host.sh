#!/usr/bin/env bash
# Install the program and the tested versions of all that it needs on a host: see the text of --help.
set -euo pipefail
# shellcheck source=launch/shell.sh
. "$(dirname "${BASH_SOURCE[0]}")/shell.sh"

uv_version=0.13.9

help() {
  cat <<TEXT
Make .venv in this checkout with Python 3.12 and the versions of launch/constraints.txt, and print them. The images of
TPU hosts carry Python 3.10, for which pip takes an old jax in silence; uv brings a Python of its own.

usage: launch/setup_host.sh [option...]

  --jax KIND   tpu or cpu (default: tpu)
  --dry-run    print the commands and run none
  --help       print this

uv is taken from the PATH or ~/.local/bin; where there is none, version $uv_version is installed into ~/.local/bin.
TEXT
}

kind=tpu
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help; exit ;;
    --dry-run) dry_run=true ;;
    --jax)
      [ $# -gt 1 ] || die "--jax lacks its value; launch/setup_host.sh --help tells more"
      kind=$2
      shift ;;
    --jax=*) kind=${1#*=} ;;
    *) die "$1 is no option of setup_host.sh; --help tells which there are" ;;
  esac
  shift
done
case $kind in
  tpu) jax='jax[tpu]' ;;
  cpu) jax=jax ;;
  *) die "--jax is $kind; tpu or cpu is expected" ;;
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
run uv pip install --quiet --python="$root/.venv" --constraint="$root/launch/constraints.txt" --editable "$root" \
  "$jax" 'etils[epath-gcs]'

# Without importing jax: another program may hold the devices.
names="jax jaxlib flax orbax-checkpoint grain numpy mambaout_jax"
[ "$kind" = cpu ] || names="libtpu $names"
run "$root/.venv/bin/python" -c "import platform; from importlib.metadata import version; \
print('Python', platform.python_version(), *(f'{name} {version(name)}' for name in '$names'.split()))"
