#!/usr/bin/env bash
# Network namespaces and their firewall for the tests of several hosts: Debian's packages, installed unless they are there.
set -euo pipefail
command -v ip > /dev/null && command -v nft > /dev/null && exit 0
bash "$(dirname "$0")/debian.sh" "tests of several hosts" iproute2 nftables
