#!/usr/bin/env bash
# Chromium for the tests of the report's page: Debian's package, installed unless one is there.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
    command -v "$name" > /dev/null && exit 0
done
bash "$(dirname "$0")/debian.sh" "tests of the page in a browser" chromium
