#!/usr/bin/env bash
# Installs Debian's package of Chromium, unless there is a browser, for the tests of the report's page.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
    command -v "$name" > /dev/null && exit 0
done
bash "$(dirname "$0")/debian.sh" "browser tests of the report" chromium
