"""Evaluates NetworkPolicies by Kubernetes' rules: which connections are allowed."""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from tests.deployment.manifests import Manifest, of_kind


@dataclass
class Endpoint:
    """One end of a connection: a pod, or a machine outside of the cluster."""

    name: str
    namespace: str | None = "landmark"
    """None: not a pod of the cluster, known only by its address."""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = "10.9.8.7"


def is_allowed(manifests: list[Manifest], source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP") -> bool:
    """Return whether the policies of both source and target allow a connection."""
    return _allows(manifests, "Egress", source, target, port, protocol) and is_ingress_allowed(
        manifests, source, target, port, protocol
    )


def is_ingress_allowed(
    manifests: list[Manifest], source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP"
) -> bool:
    """Return whether the target's policies allow a connection, without regard to the source's policies."""
    return _allows(manifests, "Ingress", target, source, port, protocol)


def _allows(
    manifests: list[Manifest], direction: str, pod: Endpoint, other: Endpoint, port: int, protocol: str
) -> bool:
    """Return whether a pod's policies for one direction allow a connection. A pod without any allows all."""
    specs = [
        policy["spec"]
        for policy in of_kind(manifests, "NetworkPolicy")
        if policy["metadata"].get("namespace") == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for spec in specs for rule in spec.get(direction.lower(), [])]
    return not specs or any(_rule_allows(rule, direction, pod, other, port, protocol) for rule in rules)


def _rule_allows(
    rule: dict[str, Any], direction: str, pod: Endpoint, other: Endpoint, port: int, protocol: str
) -> bool:
    peers = rule.get("from" if direction == "Ingress" else "to")
    ports = rule.get("ports")
    return (not peers or any(_is_peer(peer, pod, other) for peer in peers)) and (
        not ports or any(one["port"] == port and one.get("protocol", "TCP") == protocol for one in ports)
    )


def _is_peer(peer: dict[str, Any], pod: Endpoint, other: Endpoint) -> bool:
    if block := peer.get("ipBlock"):
        address = ipaddress.ip_address(other.address)
        return _in_block(address, block["cidr"]) and not any(_in_block(address, one) for one in block.get("except", []))
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
    elif other.namespace != pod.namespace:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def _in_block(address: ipaddress.IPv4Address | ipaddress.IPv6Address, block: str) -> bool:
    return address in ipaddress.ip_network(block)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Return whether a selector (matchLabels, matchExpressions with In) selects labels. An empty one selects all."""
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In" or labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
