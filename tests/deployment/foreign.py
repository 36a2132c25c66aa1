"""Schemas of the kinds that neither Kubernetes nor KubeRay defines, for the fields that the manifests use."""

from typing import Any


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
NUMBER = {"type": "integer"}
AMOUNT = {"x-kubernetes-int-or-string": True, "pattern": r"^\d+([KMGT]i)?$"}
LABELS = {"type": "object", "additionalProperties": TEXT}
SELECTOR = _object(
    [],
    matchLabels=LABELS,
    matchExpressions=_list(_object(["key", "operator"], key=TEXT, operator=TEXT, values=_list(TEXT))),
)


def _kind(version: str, name: str, **rest: Any) -> dict[str, Any]:
    fixed = {"apiVersion": {"type": "string", "enum": [version]}, "kind": {"type": "string", "enum": [name]}}
    return _object(["apiVersion", "kind", "metadata", *rest], **fixed, metadata={"type": "object"}, **rest)


# From the API reference of the Prometheus operator, PodMonitorSpec.
POD_MONITOR = _kind(
    "monitoring.coreos.com/v1",
    "PodMonitor",
    spec=_object(
        ["selector", "podMetricsEndpoints"],
        selector=SELECTOR,
        podTargetLabels=_list(TEXT),
        podMetricsEndpoints=_list(
            _object(["port"], port=TEXT, interval={"type": "string", "pattern": r"^\d+(s|m)$"}, path=TEXT)
        ),
    ),
)
# From the API reference of Kueue, v1beta2.
KUEUE = "kueue.x-k8s.io/v1beta2"
_QUOTA = _object(["name", "nominalQuota"], name=TEXT, nominalQuota=AMOUNT)
CLUSTER_QUEUE = _kind(
    KUEUE,
    "ClusterQueue",
    spec=_object(
        ["resourceGroups"],
        namespaceSelector=SELECTOR,
        resourceGroups=_list(
            _object(
                ["coveredResources", "flavors"],
                coveredResources=_list(TEXT),
                flavors=_list(_object(["name", "resources"], name=TEXT, resources=_list(_QUOTA))),
            )
        ),
    ),
)
SCHEMAS = {
    "PodMonitor": POD_MONITOR,
    "ClusterQueue": CLUSTER_QUEUE,
    "LocalQueue": _kind(KUEUE, "LocalQueue", spec=_object(["clusterQueue"], clusterQueue=TEXT)),
    "ResourceFlavor": _kind(KUEUE, "ResourceFlavor"),
    "WorkloadPriorityClass": _kind(KUEUE, "WorkloadPriorityClass", value=NUMBER, description=TEXT),
}
