#!/usr/bin/env bash
# Chromium for the tests of the report's page: Debian's package, installed unless one is there.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
    command -v "$name" > /dev/null && exit 0
done
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    sudo=(sudo -n)
fi
if ! command -v apt-get > /dev/null || { [ ${#sudo[@]} -gt 0 ] && ! sudo -n true 2> /dev/null; }; then
    echo "scripts/browser.sh: no Chromium here, and it cannot be installed (needs apt-get as root or by sudo): tests of the page in a browser are skipped" >&2
    exit 0
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install --yes --no-install-recommends chromium > "$log" 2>&1
}
# The list of packages is fetched only where the package is not known, or is older than what the mirror has.
if ! install && ! { "${sudo[@]}" apt-get update > "$log" 2>&1 && install; }; then
    echo "scripts/browser.sh: Chromium could not be installed ($(grep -m1 -E '^(E|Err)' "$log" || tail -n 1 "$log")): tests of the page in a browser are skipped" >&2
fi
