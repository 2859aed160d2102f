# shellcheck shell=bash
# Sourced by every launcher: print commands and run them. It sets `root`, the repository.

# shellcheck disable=SC2034  # used by the scripts that source this
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
dry_run=false

say() { printf '\n%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# Quote a word for a shell.
quote() {
  case $1 in
    *[!A-Za-z0-9_./=:,+@%-]* | '') printf "'%s'" "${1//\'/\'\\\'\'}" ;;
    *) printf '%s' "$1" ;;
  esac
}

# Quote a word for a shell, with paths below the caller's folder made relative.
show() {
  local word=$1
  case $word in
    "$PWD"/*) word=${word#"$PWD"/} ;;
    --*="$PWD"/*) word=${word%%=*}=${word#*="$PWD"/} ;;
  esac
  quote "$word"
}

# Print a command, and run it unless --dry-run is set.
run() {
  local word line=+
  for word in "$@"; do line="$line $(show "$word")"; done
  printf '%s\n' "$line"
  "$dry_run" || "$@"
}
