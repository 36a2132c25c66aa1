#!/usr/bin/env bash
# Installs Debian's packages for tests: scripts/debian.sh WHAT-IS-SKIPPED-WITHOUT PACKAGE …; where that is not possible it says so, and is well.
set -euo pipefail
skipped=$1
shift
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    sudo=(sudo -n)
fi
if ! command -v apt-get > /dev/null || { [ ${#sudo[@]} -gt 0 ] && ! sudo -n true 2> /dev/null; }; then
    echo "$0: no $* here, and it cannot be installed (needs apt-get as root or by sudo): $skipped are skipped" >&2
    exit 0
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install --yes --no-install-recommends "$@" > "$log" 2>&1
}
# The list of packages is fetched only where a package is not known, or is older than what the mirror has.
if ! install "$@" && ! { "${sudo[@]}" apt-get update > "$log" 2>&1 && install "$@"; }; then
    echo "$0: $* could not be installed ($(grep -m1 -E '^(E|Err)' "$log" || tail -n 1 "$log")): $skipped are skipped" >&2
fi
