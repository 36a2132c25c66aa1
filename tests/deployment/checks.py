"""The checks of a built overlay: KubeRay's schemas, Kubernetes' schemas, small ones for other kinds, and policies."""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import kubernetes_validate

from tests.deployment import foreign, schema
from tests.deployment.manifests import Manifest, all_pods, crd_schema
from tests.deployment.policies import POLICIES

VERSIONS = ("1.31", "1.37")
"""Kubernetes versions: the oldest one in KubeRay's documentation, and the newest one."""


def crd_findings(manifests: list[Manifest]) -> list[str]:
    """Return the errors by KubeRay's schemas, also in pod templates; fills their defaults into the manifests."""
    found = []
    for manifest in manifests:
        if manifest["apiVersion"].startswith("ray.io/"):
            where = f"{manifest['kind']} {manifest['metadata'].get('name')}"
            known = crd_schema(manifest["kind"]) if manifest["apiVersion"] == "ray.io/v1" else None
            found += schema.check(known, manifest, where) if known else [f"{where}: no such kind"]
    return found


def foreign_findings(manifests: list[Manifest]) -> list[str]:
    """Return the errors by the schemas of Prometheus' and Kueue's kinds."""
    found = []
    for manifest in manifests:
        if manifest["kind"] in foreign.SCHEMAS:
            where = f"{manifest['kind']} {manifest['metadata'].get('name')}"
            found += schema.check(foreign.SCHEMAS[manifest["kind"]], manifest, where)
    return found


def native_findings(manifests: list[Manifest]) -> list[str]:
    """Return the errors by Kubernetes' schemas in native kinds, in pod templates, and in all metadata."""
    found = []
    for manifest in manifests:
        where = f"{manifest['kind']} {manifest['metadata'].get('name')}"
        if manifest["kind"] in foreign.SCHEMAS or manifest["apiVersion"].startswith("ray.io/"):
            # Custom schemas do not describe metadata.
            manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
        found += _native(manifest, where)
    for pod in all_pods(manifests):
        metadata = {"name": "pod", "labels": pod.labels}
        found += _native({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}, pod.where)
    return found


def _native(manifest: Manifest, where: str) -> Iterator[str]:
    text = json.dumps(manifest, sort_keys=True)
    return (f"{where}: {line}" for version in VERSIONS if (line := _native_error(text, version)))


@cache
def _native_error(text: str, version: str) -> str | None:
    """Return the error of Kubernetes for a manifest, or None. Cached: overlays have many manifests in common."""
    manifest = json.loads(text)
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message[:200]}"
    except kubernetes_validate.SchemaNotFoundError:
        return f"Kubernetes {version} has no kind {manifest['kind']} of {manifest['apiVersion']}"
    return None


CHECKS: dict[str, Callable[[list[Manifest]], Iterable[str]]] = {
    "crd-schema": crd_findings,
    "foreign-schema": foreign_findings,
    "native-schema": native_findings,
    **POLICIES,
}
"""Checks by name. Policies expect manifests that the schemas accept."""
