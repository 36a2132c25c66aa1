"""Policies of pods and containers: what they may do, and what they may take."""

from collections.abc import Iterator
from decimal import Decimal

from tests.deployment.manifests import Manifest, all_pods, containers, quantity, ray_pods, resource
from tests.deployment.policies.registry import policy

WRITTEN = {"head": ("/tmp", "/tmp/ray", "/dev/shm", "/home/landmark"), "submitter": ("/tmp", "/home/landmark")}
WRITTEN["worker"] = WRITTEN["head"]
CPUS_A_GPU = 6
OBJECT_STORE_SHARE = Decimal("0.3")
"""Of a node's memory, Ray's default."""


@policy
def non_root(manifests: list[Manifest]) -> Iterator[str]:
    """No container runs as root."""
    for pod in all_pods(manifests):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{pod.where}: may run as root"
    for where, container, _ in containers(manifests):
        context = container.get("securityContext", {})
        if context.get("runAsNonRoot", True) is not True or context.get("runAsUser", 1) == 0:
            yield f"{where}: may run as root"


@policy
def no_privilege_escalation(manifests: list[Manifest]) -> Iterator[str]:
    """No container is privileged or becomes it."""
    for where, container, _ in containers(manifests):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{where}: may gain privileges"


@policy
def capabilities_dropped(manifests: list[Manifest]) -> Iterator[str]:
    """All capabilities are dropped, none is added."""
    for where, container, _ in containers(manifests):
        if container.get("securityContext", {}).get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: keeps capabilities"


@policy
def seccomp(manifests: list[Manifest]) -> Iterator[str]:
    """System calls are those of the runtime's default profile."""
    for pod in all_pods(manifests):
        if pod.spec.get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.where}: has no seccomp profile"


@policy
def read_only_root(manifests: list[Manifest]) -> Iterator[str]:
    """The root file system is read-only; what Ray writes is mounted."""
    for where, container, _ in containers(manifests):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where}: writes to its root file system"
    for pod in all_pods(manifests):
        mounted = {mount["mountPath"] for mount in pod.spec["containers"][0].get("volumeMounts", [])}
        for path in WRITTEN[pod.role]:
            if path not in mounted:
                yield f"{pod.where}: nothing to write to at {path}"


@policy
def no_host_access(manifests: list[Manifest]) -> Iterator[str]:
    """No pod uses the machine's network, processes or files."""
    for pod in all_pods(manifests):
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield f"{pod.where}: {key}"
        for volume in pod.spec.get("volumes", []):
            if not {"emptyDir", "projected", "configMap", "secret"} & set(volume):
                yield f"{pod.where}: volume {volume['name']} is the machine's or outlives the pod"


@policy
def requests_are_limits(manifests: list[Manifest]) -> Iterator[str]:
    """Memory and ephemeral storage are requested, and no more may be had; CPUs are requested."""
    for where, container, _ in containers(manifests):
        for name in ("memory", "ephemeral-storage"):
            wanted, limit = resource(container, "requests", name), resource(container, "limits", name)
            if wanted is None or wanted != limit:
                yield f"{where}: {name} requested {wanted}, limit {limit}"
        if resource(container, "requests", "cpu") is None:
            yield f"{where}: requests no CPU"


@policy
def storage_fits(manifests: list[Manifest]) -> Iterator[str]:
    """Every folder on the machine's disk has a size, and all fit what the pod may have of it."""
    for pod in all_pods(manifests):
        disks = [volume["emptyDir"] for volume in pod.spec.get("volumes", []) if "emptyDir" in volume]
        sizes = [disk.get("sizeLimit") for disk in disks if disk.get("medium") != "Memory"]
        limit = resource(pod.spec["containers"][0], "limits", "ephemeral-storage") if pod.spec["containers"] else None
        if None in sizes:
            yield f"{pod.where}: a folder without a size"
        elif limit is not None and sum(map(quantity, filter(None, sizes))) > limit:
            yield f"{pod.where}: folders of {', '.join(filter(None, sizes))} in {limit} bytes"


@policy
def shm_sized(manifests: list[Manifest]) -> Iterator[str]:
    """/dev/shm holds Ray's object store (30 % of the memory) and leaves half of the memory to processes."""
    for pod in ray_pods(manifests):
        container = pod.spec["containers"][0]
        volume = next((one["name"] for one in container["volumeMounts"] if one["mountPath"] == "/dev/shm"), None)
        shm = next((one.get("emptyDir", {}) for one in pod.spec["volumes"] if one["name"] == volume), {})
        memory = resource(container, "limits", "memory")
        if shm.get("medium") != "Memory" or not shm.get("sizeLimit") or not memory:
            yield f"{pod.where}: /dev/shm is not memory of a size"
        elif not OBJECT_STORE_SHARE * memory <= quantity(shm["sizeLimit"]) <= memory / 2:
            yield f"{pod.where}: /dev/shm of {shm['sizeLimit']} beside {memory} bytes of memory"


@policy
def gpu_fed(manifests: list[Manifest]) -> Iterator[str]:
    """A worker with GPUs has CPUs to decode for them, is let onto their machines, and the head has none."""
    for pod in ray_pods(manifests):
        container = pod.spec["containers"][0]
        gpus = resource(container, "limits", "nvidia.com/gpu") or 0
        cpus = resource(container, "requests", "cpu") or 0
        if not gpus:
            continue
        if pod.role == "head":
            yield f"{pod.where}: a GPU that nothing uses"
        if cpus < CPUS_A_GPU * gpus:
            yield f"{pod.where}: {cpus} CPUs for {gpus} GPUs"
        if resource(container, "requests", "nvidia.com/gpu") != gpus:
            yield f"{pod.where}: requests other GPUs than its limit"
        if "nvidia.com/gpu" not in [one.get("key") for one in pod.spec.get("tolerations", [])]:
            yield f"{pod.where}: kept off machines with GPUs"


@policy
def grace_fits_drain(manifests: list[Manifest]) -> Iterator[str]:
    """Ray's drain ends before the pod is killed, with time left to save."""
    for pod in ray_pods(manifests):
        environment = {one["name"]: one.get("value") for one in pod.spec["containers"][0].get("env", [])}
        drain = float(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") or 0)
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if not 0 < drain <= grace - 15:
            yield f"{pod.where}: drains for {drain:g} s of {grace} s"


@policy
def image_pinned(manifests: list[Manifest]) -> Iterator[str]:
    """All containers of a deployment run one image, of one version."""
    images = set()
    for pod in all_pods(manifests):
        images |= {container["image"] for container in pod.spec["containers"]}
    for image in images:
        tag = image.rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest") and "@sha256:" not in image:
            yield f"image {image}: any version"
    if len(images) > 1:
        yield f"images {', '.join(sorted(images))}: more than one"
