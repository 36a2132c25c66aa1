#!/usr/bin/env bash
# Installs Debian's package of kubectl for the tests of the manifests. They use kustomize, which supports components from
# kubectl 1.21.
set -euo pipefail
skipped="tests of the manifests are skipped"
known() {
    kubectl kustomize --help 2> /dev/null | grep --quiet enable-helm
}
if command -v kubectl > /dev/null; then
    known || echo "scripts/kubectl.sh: this kubectl is older than 1.21: $skipped" >&2
    exit 0
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    sudo=(sudo -n)
fi
if ! command -v apt-get > /dev/null || { [ ${#sudo[@]} -gt 0 ] && ! sudo -n true 2> /dev/null; }; then
    echo "scripts/kubectl.sh: kubectl is missing and cannot be installed (needs apt-get as root or with sudo): $skipped" >&2
    exit 0
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    # The package is kubernetes-client in Debian, and kubectl in the repositories of Kubernetes and Google.
    for name in kubectl kubernetes-client; do
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install --yes --no-install-recommends "$name" > "$log" 2>&1 && return 0
    done
    return 1
}
# Update the package list only if the package is unknown or its listed version is outdated.
if ! install && ! { "${sudo[@]}" apt-get update > "$log" 2>&1 && install; }; then
    echo "scripts/kubectl.sh: kubectl could not be installed ($(grep -m1 -E '^(E|Err)' "$log" || tail -n 1 "$log")): $skipped" >&2
    exit 0
fi
known || echo "scripts/kubectl.sh: Debian's kubectl is older than 1.21 (use Debian 13 or later): $skipped" >&2
