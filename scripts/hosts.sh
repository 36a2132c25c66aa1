#!/usr/bin/env bash
# Installs Debian's packages for network namespaces and nftables, which the multi-host tests need.
set -euo pipefail
command -v ip > /dev/null && command -v nft > /dev/null && exit 0
bash "$(dirname "$0")/debian.sh" "multi-host tests" iproute2 nftables
