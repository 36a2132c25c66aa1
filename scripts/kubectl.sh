#!/usr/bin/env bash
# kubectl for the tests of the manifests: Debian's package, installed unless there is one. It builds them with kustomize, which knows
# components from kubectl 1.21 on.
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
    echo "scripts/kubectl.sh: no kubectl here, and it cannot be installed (needs apt-get as root or by sudo): $skipped" >&2
    exit 0
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    # Debian calls it kubernetes-client, Kubernetes' and Google's own repositories kubectl.
    for name in kubectl kubernetes-client; do
        DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install --yes --no-install-recommends "$name" > "$log" 2>&1 && return 0
    done
    return 1
}
# The list of packages is fetched only where the package is not known, or is older than what the mirror has.
if ! install && ! { "${sudo[@]}" apt-get update > "$log" 2>&1 && install; }; then
    echo "scripts/kubectl.sh: kubectl could not be installed ($(grep -m1 -E '^(E|Err)' "$log" || tail -n 1 "$log")): $skipped" >&2
    exit 0
fi
known || echo "scripts/kubectl.sh: Debian's kubectl is older than 1.21 (Debian 13's is not): $skipped" >&2
