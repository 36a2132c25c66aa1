"""Policies of access: networks, credentials, accounts."""

import re
from collections.abc import Iterator
from typing import Any

from tests.deployment.manifests import Manifest, Pod, all_pods, clusters, containers, of_kind, ray_pods
from tests.deployment.network import End, let_in, open_between
from tests.deployment.policies.registry import policy

GCS, DASHBOARD, CLIENT, METRICS = 6379, 8265, 10001, 8080
PORTS = (22, 443, GCS, METRICS, DASHBOARD, CLIENT, 8076, 12345, 52365)
"""Ray's, and some that nothing is said of: object manager, a rendezvous, the agent."""
OPERATOR = End("the operator", "ray-system", {"app.kubernetes.io/name": "kuberay-operator"})
PROMETHEUS = End("Prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"})
DNS = End("the cluster's DNS", "kube-system", {"k8s-app": "kube-dns"})
NODE_DNS = End("the node's DNS cache", None, address="169.254.20.10")
"""NodeLocal DNSCache: the nameserver in each pod's resolv.conf where it is installed (GKE, many EKS clusters)."""
BUCKET = End("the bucket", None, address="52.216.1.1")
METADATA = End("the machine's metadata service", None, address="169.254.169.254")
METADATA_6 = End("the machine's metadata service", None, address="fd00:ec2::254")
STRANGERS = (
    End("a pod of the namespace", "landmark", {}),
    End("a pod of the namespace called landmark", "landmark", {"app.kubernetes.io/part-of": "landmark"}),
    End("a pod of another namespace", "default", {}),
    End(
        "a pod of another namespace with a worker's labels",
        "default",
        {
            "app.kubernetes.io/part-of": "landmark",
            "app.kubernetes.io/component": "worker",
            "app.kubernetes.io/instance": "tune",
        },
    ),
    End("another pod beside the operator", "ray-system", {"app.kubernetes.io/name": "kuberay"}),
    End("another pod beside Prometheus", "monitoring", {"app.kubernetes.io/name": "grafana"}),
    End("the internet", None, address="203.0.113.9"),
)
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
SECRET_TEXT = re.compile(
    r"AKIA[0-9A-Z]{16}|://[^/@\s:]+:[^/@\s]+@|-----BEGIN [A-Z ]*PRIVATE KEY|--\S*(token|password|secret)"
)


def _end(pod: Pod) -> End:
    return End(pod.where, "landmark", pod.labels)


def _cluster_of(pod: Pod) -> str:
    return pod.where.partition(",")[0]


@policy
def network_denies_by_default(manifests: list[Manifest]) -> Iterator[str]:
    """What no policy names is closed, both ways."""
    for policy_ in of_kind(manifests, "NetworkPolicy"):
        spec = policy_["spec"]
        if spec["podSelector"] == {} and set(spec["policyTypes"]) == {"Ingress", "Egress"}:
            if spec.get("ingress") or spec.get("egress"):
                yield "the policy of all pods lets something through"
            return
    yield "nothing closes the namespace"


@policy
def network_closed_to_strangers(manifests: list[Manifest]) -> Iterator[str]:
    """Nobody but the cluster's own pods reaches a port of it: not the dashboard, the GCS, the client's, no other."""
    pods = all_pods(manifests)
    for pod in pods:
        others = [_end(one) for one in pods if _cluster_of(one) != _cluster_of(pod)]
        for source in (*STRANGERS, *others):
            opened = [port for port in PORTS if let_in(manifests, source, _end(pod), port)]
            if opened:
                yield f"{pod.where}: ports {opened} are open to {source.what}"


@policy
def network_open_where_needed(manifests: list[Manifest]) -> Iterator[str]:
    """Nodes of one cluster reach each other; the submitter and the operator the dashboard, and no more; all the DNS."""
    pods = all_pods(manifests)
    for pod in pods:
        for dns in (DNS, NODE_DNS):
            if not all(open_between(manifests, _end(pod), dns, 53, protocol) for protocol in ("UDP", "TCP")):
                yield f"{pod.where}: does not reach {dns.what}"
        if pod.role == "submitter":
            continue
        for other in pods:
            if _cluster_of(other) == _cluster_of(pod):
                yield from _between(manifests, other, pod)
        if not open_between(manifests, _end(pod), BUCKET, 443):
            yield f"{pod.where}: does not reach the bucket"
        wanted = {DASHBOARD} if pod.role == "head" else set()
        if {port for port in PORTS if open_between(manifests, OPERATOR, _end(pod), port)} != wanted:
            yield f"{pod.where}: the operator reaches other ports than {wanted or 'none'}"
        if {port for port in PORTS if open_between(manifests, PROMETHEUS, _end(pod), port)} != {METRICS}:
            yield f"{pod.where}: Prometheus reaches other ports than its metrics"


def _between(manifests: list[Manifest], source: Pod, target: Pod) -> Iterator[str]:
    opened = {port for port in PORTS if open_between(manifests, _end(source), _end(target), port)}
    wanted = set(PORTS)
    if source.role == "submitter":
        wanted = {DASHBOARD} if target.role == "head" else set()
    if opened != wanted:
        yield f"{target.where}: {source.where} reaches {sorted(opened)}, expected {sorted(wanted)}"


@policy
def network_keeps_the_machines_credentials(manifests: list[Manifest]) -> Iterator[str]:
    """No pod reaches the metadata service of its machine, nor a port outside but the bucket's."""
    for pod in all_pods(manifests):
        for target in (METADATA, METADATA_6):
            if any(open_between(manifests, _end(pod), target, port) for port in (80, 443)):
                yield f"{pod.where}: reaches {target.what}"
        if any(open_between(manifests, _end(pod), BUCKET, port) for port in (22, 25, 80)):
            yield f"{pod.where}: reaches any port outside"
        if any(open_between(manifests, _end(pod), NODE_DNS, port) for port in PORTS):
            yield f"{pod.where}: reaches other ports of its node than the DNS"


@policy
def no_credentials(manifests: list[Manifest]) -> Iterator[str]:
    """No key, token or password stands in a manifest."""
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
    """Ray's pods have an account that exists, for the bucket's role, and may read its keys from a Secret that need not be there."""
    accounts = {one["metadata"]["name"] for one in of_kind(manifests, "ServiceAccount")}
    for pod in ray_pods(manifests):
        if pod.spec.get("serviceAccountName") not in accounts:
            yield f"{pod.where}: account {pod.spec.get('serviceAccountName')!r} is not here"
        sources = [one.get("secretRef", {}) for one in pod.spec["containers"][0].get("envFrom", [])]
        if {"name": "landmark-bucket", "optional": True} not in sources:
            yield f"{pod.where}: takes no keys from Secret landmark-bucket"


@policy
def no_token_of_kubernetes(manifests: list[Manifest]) -> Iterator[str]:
    """No container holds a token of Kubernetes but the autoscaler, which needs it."""
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
    """Kubernetes itself refuses pods that are less confined, and everything lies in that namespace."""
    for namespace in of_kind(manifests, "Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"namespace {namespace['metadata']['name']}: takes any pod"
    names = {one["metadata"]["name"] for one in of_kind(manifests, "Namespace")}
    for cluster in clusters(manifests):
        if cluster.owner["metadata"].get("namespace") not in names:
            yield f"{cluster.name}: is in another namespace"
