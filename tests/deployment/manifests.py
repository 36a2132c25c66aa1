"""Builds the manifests with kubectl and reads them: Ray clusters, pods, quantities."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
OVERLAYS = tuple(sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir()))
CRDS = Path(os.environ.get("LANDMARK_CRDS", ROOT.parent / "shared" / "crds")).resolve()
Manifest = dict[str, Any]
UNITS = {"": 0, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12}


@dataclass
class Pod:
    """A pod in a manifest."""

    where: str
    """A description of its owner: `RayJob tune, group gpu`."""
    role: str
    """head, worker, submitter or autoscaler (a container that the operator adds to the head)."""
    spec: Manifest
    labels: dict[str, str] = field(default_factory=dict)
    count: int = 1


@dataclass
class Cluster:
    """A Ray cluster in a RayCluster or a RayJob."""

    owner: Manifest
    spec: Manifest

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def groups(self) -> list[Manifest]:
        return self.spec.get("workerGroupSpecs", [])

    def pods(self) -> list[Pod]:
        """Return the head and one pod per worker group."""
        head = self.spec["headGroupSpec"]["template"]
        found = [Pod(f"{self.name}, head", "head", head["spec"], labels_of(head))]
        for group in self.groups:
            template = group["template"]
            where = f"{self.name}, group {group['groupName']}"
            found.append(Pod(where, "worker", template["spec"], labels_of(template), group["replicas"]))
        return found


def has_kubectl() -> bool:
    """Return whether there is a kubectl that supports kustomize components (1.21 or newer)."""
    if not shutil.which("kubectl"):
        return False
    help_text = subprocess.run(["kubectl", "kustomize", "--help"], capture_output=True, text=True, timeout=60).stdout
    return "--enable-helm" in help_text


def build(folder: Path) -> list[Manifest]:
    """Return the manifests that kubectl builds from a kustomize folder."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


def overlay(name: str) -> list[Manifest]:
    return build(ROOT / "k8s" / "overlays" / name)


@cache
def crd_schema(kind: str) -> Manifest | None:
    """Return the schema of one of KubeRay's kinds, version v1, or None."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        return None
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    return next(one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1")


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def labels_of(template: Manifest) -> dict[str, str]:
    return template.get("metadata", {}).get("labels", {})


def clusters(manifests: list[Manifest]) -> list[Cluster]:
    found = [Cluster(one, one["spec"]) for one in of_kind(manifests, "RayCluster")]
    return found + [Cluster(job, job["spec"].get("rayClusterSpec", {})) for job in of_kind(manifests, "RayJob")]


def ray_pods(manifests: list[Manifest]) -> list[Pod]:
    return [pod for cluster in clusters(manifests) for pod in cluster.pods()]


def submitters(manifests: list[Manifest]) -> list[Pod]:
    found = []
    for job in of_kind(manifests, "RayJob"):
        template = job["spec"].get("submitterPodTemplate", {"spec": {"containers": []}})
        where = f"RayJob {job['metadata']['name']}, submitter"
        found.append(Pod(where, "submitter", template["spec"], labels_of(template)))
    return found


def all_pods(manifests: list[Manifest]) -> list[Pod]:
    return ray_pods(manifests) + submitters(manifests)


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yield every container, including the autoscaler: its location, its spec, and the spec of its pod."""
    for pod in all_pods(manifests):
        for container in [*pod.spec.get("initContainers", []), *pod.spec["containers"]]:
            yield f"{pod.where}, container {container['name']}", container, pod.spec
    for cluster in clusters(manifests):
        if cluster.spec.get("enableInTreeAutoscaling"):
            head = cluster.spec["headGroupSpec"]["template"]["spec"]
            yield f"{cluster.name}, autoscaler", cluster.spec.get("autoscalerOptions", {}), head


def quantity(text: str | int | float) -> Decimal:
    """Return a Kubernetes quantity as a number."""
    found = re.fullmatch(r"([\d.]+)([KMGT]i|[mkMGT]?)", str(text))
    if not found:
        raise ValueError(f"{text!r} is not a quantity")
    number, unit = found.groups()
    if unit.endswith("i"):
        return Decimal(number) * 1024 ** ("KMGT".index(unit[0]) + 1)
    return Decimal(number).scaleb(UNITS[unit])


def resource(container: Manifest, kind: str, name: str) -> Decimal | None:
    """Return the request (`requests`) or the limit (`limits`) of a container for a resource, or None."""
    found = container.get("resources", {}).get(kind, {}).get(name)
    return None if found is None else quantity(found)
