#!/usr/bin/env bash
# Installs Debian's packages for tests: scripts/debian.sh SKIPPED-TESTS PACKAGE …. If that fails, it prints why and exits with 0.
set -euo pipefail
skipped=$1
shift
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    sudo=(sudo -n)
fi
if ! command -v apt-get > /dev/null || { [ ${#sudo[@]} -gt 0 ] && ! sudo -n true 2> /dev/null; }; then
    echo "$0: $* is missing and cannot be installed (needs apt-get as root or with sudo): $skipped are skipped" >&2
    exit 0
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install --yes --no-install-recommends "$@" > "$log" 2>&1
}
# Update the package list only if a package is unknown or its listed version is outdated.
if ! install "$@" && ! { "${sudo[@]}" apt-get update > "$log" 2>&1 && install "$@"; }; then
    echo "$0: $* could not be installed ($(grep -m1 -E '^(E|Err)' "$log" || tail -n 1 "$log")): $skipped are skipped" >&2
fi
