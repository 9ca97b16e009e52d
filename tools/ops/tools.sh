# Sourced by the checks, in the checkout's root: where their tools are, and how these are installed once.
# shellcheck shell=bash

mkdir -p vendor/ops
# Without links, since a virtual environment is written with its path.
tools=$(realpath vendor/ops)

# once NAME COMMAND FILE...: runs the command unless it has succeeded before, with these files as they are now, this Python,
# and the tools where they are now. A virtual environment holds for one Python at one place.
once() {
  local stamp=$tools/$1.installed command=$2 key
  shift 2
  key=$({ cat "$@" /dev/null && python3 --version && echo "$tools"; } | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] || { "$command" && printf '%s' "$key" >"$stamp"; }
}

# debian PROGRAM PACKAGE LOSS: installs a package of Debian's unless the program is there, and says what is lost where
# that cannot be done.
debian() {
  command -v "$1" >/dev/null ||
    { [ "$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2"; } >/dev/null 2>&1 ||
    echo "there is no $1, and the package $2 cannot be installed: $3" >&2
}
