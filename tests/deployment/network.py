"""Who reaches whom: NetworkPolicies evaluated by Kubernetes' rules."""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from tests.deployment.manifests import Manifest, of_kind


@dataclass
class End:
    """One end of a connection: a pod, or a machine outside."""

    what: str
    namespace: str | None = "landmark"
    """None: no pod of the cluster, known by its address alone."""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = "10.9.8.7"


def open_between(manifests: list[Manifest], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Return whether a connection is let out of its source and into its target."""
    return _lets(manifests, "Egress", source, target, port, protocol) and let_in(
        manifests, source, target, port, protocol
    )


def let_in(manifests: list[Manifest], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Return whether a target's own policies let a connection in, whatever the source's let out."""
    return _lets(manifests, "Ingress", target, source, port, protocol)


def _lets(manifests: list[Manifest], way: str, pod: End, other: End, port: int, protocol: str) -> bool:
    """Return whether a pod's policies of one way let a connection through; without any, everything is."""
    chosen = [
        policy["spec"]
        for policy in of_kind(manifests, "NetworkPolicy")
        if policy["metadata"].get("namespace") == pod.namespace
        and way in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for spec in chosen for rule in spec.get(way.lower(), [])]
    return not chosen or any(_rule_lets(rule, way, pod, other, port, protocol) for rule in rules)


def _rule_lets(rule: dict[str, Any], way: str, pod: End, other: End, port: int, protocol: str) -> bool:
    peers = rule.get("from" if way == "Ingress" else "to")
    ports = rule.get("ports")
    return (not peers or any(_is_peer(peer, pod, other) for peer in peers)) and (
        not ports or any(one["port"] == port and one.get("protocol", "TCP") == protocol for one in ports)
    )


def _is_peer(peer: dict[str, Any], pod: End, other: End) -> bool:
    if block := peer.get("ipBlock"):
        address = ipaddress.ip_address(other.address)
        return _within(address, block["cidr"]) and not any(_within(address, one) for one in block.get("except", []))
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != pod.namespace:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, block: str) -> bool:
    return address in ipaddress.ip_network(block)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Return whether a selector (matchLabels, matchExpressions with In) selects labels; an empty one selects all."""
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In" or labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
