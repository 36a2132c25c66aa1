"""Policies of access: network, credentials, service accounts."""

import re
from collections.abc import Iterator
from typing import Any

from tests.deployment.manifests import Manifest, Pod, all_pods, clusters, containers, of_kind, ray_pods
from tests.deployment.network import Endpoint, is_allowed, is_ingress_allowed
from tests.deployment.policies.registry import policy

GCS, DASHBOARD, CLIENT, METRICS = 6379, 8265, 10001, 8080
PORTS = (22, 443, GCS, METRICS, DASHBOARD, CLIENT, 8076, 12345, 52365)
"""Ports of Ray, and ports that no policy names: object manager, rendezvous, dashboard agent."""
OPERATOR = Endpoint("the operator", "ray-system", {"app.kubernetes.io/name": "kuberay-operator"})
PROMETHEUS = Endpoint("Prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"})
DNS = Endpoint("the cluster's DNS", "kube-system", {"k8s-app": "kube-dns"})
NODE_DNS = Endpoint("the node's DNS cache", None, address="169.254.20.10")
"""NodeLocal DNSCache: the nameserver in each pod's resolv.conf if it is installed (GKE, many EKS clusters)."""
BUCKET = Endpoint("the bucket", None, address="52.216.1.1")
METADATA = Endpoint("the node's metadata service", None, address="169.254.169.254")
METADATA_6 = Endpoint("the node's metadata service", None, address="fd00:ec2::254")
UNRELATED_PEERS = (
    Endpoint("a pod of the namespace", "landmark", {}),
    Endpoint("a pod of the namespace called landmark", "landmark", {"app.kubernetes.io/part-of": "landmark"}),
    Endpoint("a pod of another namespace", "default", {}),
    Endpoint(
        "a pod of another namespace with a worker's labels",
        "default",
        {
            "app.kubernetes.io/part-of": "landmark",
            "app.kubernetes.io/component": "worker",
            "app.kubernetes.io/instance": "tune",
        },
    ),
    Endpoint("another pod next to the operator", "ray-system", {"app.kubernetes.io/name": "kuberay"}),
    Endpoint("another pod next to Prometheus", "monitoring", {"app.kubernetes.io/name": "grafana"}),
    Endpoint("the internet", None, address="203.0.113.9"),
)
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
SECRET_TEXT = re.compile(
    r"AKIA[0-9A-Z]{16}|://[^/@\s:]+:[^/@\s]+@|-----BEGIN [A-Z ]*PRIVATE KEY|--\S*(token|password|secret)"
)


def _endpoint(pod: Pod) -> Endpoint:
    return Endpoint(pod.where, "landmark", pod.labels)


def _cluster_of(pod: Pod) -> str:
    return pod.where.partition(",")[0]


@policy
def network_denies_by_default(manifests: list[Manifest]) -> Iterator[str]:
    """Connections that no policy names are denied in both directions."""
    for policy_ in of_kind(manifests, "NetworkPolicy"):
        spec = policy_["spec"]
        if spec["podSelector"] == {} and set(spec["policyTypes"]) == {"Ingress", "Egress"}:
            if spec.get("ingress") or spec.get("egress"):
                yield "the default policy allows some connections"
            return
    yield "no policy denies all connections by default"


@policy
def network_closed_to_unrelated_peers(manifests: list[Manifest]) -> Iterator[str]:
    """Only the cluster's own pods reach its ports, including the dashboard, the GCS and the client server."""
    pods = all_pods(manifests)
    for pod in pods:
        others = [_endpoint(one) for one in pods if _cluster_of(one) != _cluster_of(pod)]
        for source in (*UNRELATED_PEERS, *others):
            opened = [port for port in PORTS if is_ingress_allowed(manifests, source, _endpoint(pod), port)]
            if opened:
                yield f"{pod.where}: ports {opened} are open to {source.name}"


@policy
def network_open_where_needed(manifests: list[Manifest]) -> Iterator[str]:
    """Nodes of a cluster reach each other; submitter and operator reach only the dashboard; all pods reach the DNS."""
    pods = all_pods(manifests)
    for pod in pods:
        for dns in (DNS, NODE_DNS):
            if not all(is_allowed(manifests, _endpoint(pod), dns, 53, protocol) for protocol in ("UDP", "TCP")):
                yield f"{pod.where}: cannot reach {dns.name}"
        if pod.role == "submitter":
            continue
        for other in pods:
            if _cluster_of(other) == _cluster_of(pod):
                yield from _between(manifests, other, pod)
        if not is_allowed(manifests, _endpoint(pod), BUCKET, 443):
            yield f"{pod.where}: cannot reach the bucket"
        expected = {DASHBOARD} if pod.role == "head" else set()
        if {port for port in PORTS if is_allowed(manifests, OPERATOR, _endpoint(pod), port)} != expected:
            yield f"{pod.where}: the operator does not reach exactly the ports {expected or 'none'}"
        if {port for port in PORTS if is_allowed(manifests, PROMETHEUS, _endpoint(pod), port)} != {METRICS}:
            yield f"{pod.where}: Prometheus does not reach exactly the metrics port"


def _between(manifests: list[Manifest], source: Pod, target: Pod) -> Iterator[str]:
    opened = {port for port in PORTS if is_allowed(manifests, _endpoint(source), _endpoint(target), port)}
    expected = set(PORTS)
    if source.role == "submitter":
        expected = {DASHBOARD} if target.role == "head" else set()
    if opened != expected:
        yield f"{target.where}: {source.where} reaches {sorted(opened)}, expected {sorted(expected)}"


@policy
def network_protects_node_credentials(manifests: list[Manifest]) -> Iterator[str]:
    """No pod reaches the metadata service of its node. The only open external port is that of the bucket."""
    for pod in all_pods(manifests):
        for target in (METADATA, METADATA_6):
            if any(is_allowed(manifests, _endpoint(pod), target, port) for port in (80, 443)):
                yield f"{pod.where}: reaches {target.name}"
        if any(is_allowed(manifests, _endpoint(pod), BUCKET, port) for port in (22, 25, 80)):
            yield f"{pod.where}: reaches other external ports"
        if any(is_allowed(manifests, _endpoint(pod), NODE_DNS, port) for port in PORTS):
            yield f"{pod.where}: reaches ports of its node other than the DNS"


@policy
def no_credentials(manifests: list[Manifest]) -> Iterator[str]:
    """No manifest contains a key, a token or a password."""
    for secret in of_kind(manifests, "Secret"):
        yield f"Secret {secret['metadata']['name']}: is in the manifest"
    for where, container, _ in containers(manifests):
        for one in container.get("env", []):
            if SECRET_NAME.search(one["name"]) and one.get("value"):
                yield f"{where}: {one['name']} has its value in the manifest"
    for manifest in manifests:
        for text in _texts(manifest):
            if SECRET_TEXT.search(text):
                yield f"{manifest['kind']} {manifest['metadata']['name']}: a credential in {text[:40]!r}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)


@policy
def own_account(manifests: list[Manifest]) -> Iterator[str]:
    """Ray's pods have an existing service account for the bucket, and can read its keys from an optional Secret."""
    accounts = {one["metadata"]["name"] for one in of_kind(manifests, "ServiceAccount")}
    for pod in ray_pods(manifests):
        if pod.spec.get("serviceAccountName") not in accounts:
            yield f"{pod.where}: account {pod.spec.get('serviceAccountName')!r} does not exist"
        sources = [one.get("secretRef", {}) for one in pod.spec["containers"][0].get("envFrom", [])]
        if {"name": "landmark-bucket", "optional": True} not in sources:
            yield f"{pod.where}: does not read keys from Secret landmark-bucket"


@policy
def no_kubernetes_token(manifests: list[Manifest]) -> Iterator[str]:
    """Only the autoscaler has a Kubernetes token."""
    for account in of_kind(manifests, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"account {account['metadata']['name']}: its token is mounted by default"
    for pod in all_pods(manifests):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: a token is mounted"
        tokens = {volume["name"] for volume in pod.spec.get("volumes", []) if "projected" in volume}
        for container in pod.spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] in tokens:
                    yield f"{pod.where}, container {container['name']}: a token is mounted"


@policy
def namespace_is_restricted(manifests: list[Manifest]) -> Iterator[str]:
    """Kubernetes refuses less restricted pods, and all clusters are in that namespace."""
    for namespace in of_kind(manifests, "Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {namespace['metadata']['name']}: accepts any pod"
    names = {one["metadata"]["name"] for one in of_kind(manifests, "Namespace")}
    for cluster in clusters(manifests):
        if cluster.owner["metadata"].get("namespace") not in names:
            yield f"{cluster.name}: is in another namespace"
