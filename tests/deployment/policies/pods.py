"""Policies of pods and containers: their permissions and their resources."""

from collections.abc import Iterator
from decimal import Decimal

from tests.deployment.manifests import Manifest, all_pods, containers, quantity, ray_pods, resource
from tests.deployment.policies.registry import policy

WRITTEN = {"head": ("/tmp", "/tmp/ray", "/dev/shm", "/home/landmark"), "submitter": ("/tmp", "/home/landmark")}
WRITTEN["worker"] = WRITTEN["head"]
CPUS_PER_GPU = 6
OBJECT_STORE_FRACTION = Decimal("0.3")
"""Fraction of a node's memory, Ray's default."""


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
    """No container is privileged or can gain privileges."""
    for where, container, _ in containers(manifests):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{where}: may gain privileges"


@policy
def capabilities_dropped(manifests: list[Manifest]) -> Iterator[str]:
    """All capabilities are dropped, and none is added."""
    for where, container, _ in containers(manifests):
        if container.get("securityContext", {}).get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: keeps capabilities"


@policy
def seccomp(manifests: list[Manifest]) -> Iterator[str]:
    """Pods use the seccomp profile of the container runtime."""
    for pod in all_pods(manifests):
        if pod.spec.get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.where}: has no seccomp profile"


@policy
def read_only_root(manifests: list[Manifest]) -> Iterator[str]:
    """The root file system is read-only, and the folders that Ray writes to are mounted."""
    for where, container, _ in containers(manifests):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where}: has a writable root file system"
    for pod in all_pods(manifests):
        mounted = {mount["mountPath"] for mount in pod.spec["containers"][0].get("volumeMounts", [])}
        for path in WRITTEN[pod.role]:
            if path not in mounted:
                yield f"{pod.where}: no volume at {path}"


@policy
def no_host_access(manifests: list[Manifest]) -> Iterator[str]:
    """No pod uses the network, processes or files of the host."""
    for pod in all_pods(manifests):
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield f"{pod.where}: {key}"
        for volume in pod.spec.get("volumes", []):
            if not {"emptyDir", "projected", "configMap", "secret"} & set(volume):
                yield f"{pod.where}: volume {volume['name']} is on the host or outlives the pod"


@policy
def requests_are_limits(manifests: list[Manifest]) -> Iterator[str]:
    """The requests for memory and ephemeral storage equal the limits, and CPUs are requested."""
    for where, container, _ in containers(manifests):
        for name in ("memory", "ephemeral-storage"):
            requested, limit = resource(container, "requests", name), resource(container, "limits", name)
            if requested is None or requested != limit:
                yield f"{where}: {name} requested {requested}, limit {limit}"
        if resource(container, "requests", "cpu") is None:
            yield f"{where}: requests no CPU"


@policy
def storage_fits(manifests: list[Manifest]) -> Iterator[str]:
    """Every volume on disk has a size limit, and their sum is within the storage limit of the pod."""
    for pod in all_pods(manifests):
        disks = [volume["emptyDir"] for volume in pod.spec.get("volumes", []) if "emptyDir" in volume]
        sizes = [disk.get("sizeLimit") for disk in disks if disk.get("medium") != "Memory"]
        limit = resource(pod.spec["containers"][0], "limits", "ephemeral-storage") if pod.spec["containers"] else None
        if None in sizes:
            yield f"{pod.where}: a volume without a size limit"
        elif limit is not None and sum(map(quantity, filter(None, sizes))) > limit:
            yield f"{pod.where}: volumes of {', '.join(filter(None, sizes))}, limit {limit} bytes"


@policy
def shm_sized(manifests: list[Manifest]) -> Iterator[str]:
    """/dev/shm fits Ray's object store (30% of the memory) and leaves half of the memory to processes."""
    for pod in ray_pods(manifests):
        container = pod.spec["containers"][0]
        volume = next((one["name"] for one in container["volumeMounts"] if one["mountPath"] == "/dev/shm"), None)
        shm = next((one.get("emptyDir", {}) for one in pod.spec["volumes"] if one["name"] == volume), {})
        memory = resource(container, "limits", "memory")
        if shm.get("medium") != "Memory" or not shm.get("sizeLimit") or not memory:
            yield f"{pod.where}: /dev/shm is not in memory with a size limit"
        elif not OBJECT_STORE_FRACTION * memory <= quantity(shm["sizeLimit"]) <= memory / 2:
            yield f"{pod.where}: /dev/shm of {shm['sizeLimit']} for {memory} bytes of memory"


@policy
def gpus_have_cpus(manifests: list[Manifest]) -> Iterator[str]:
    """A worker with GPUs has CPUs for decoding and tolerates GPU nodes, and the head has no GPU."""
    for pod in ray_pods(manifests):
        container = pod.spec["containers"][0]
        gpus = resource(container, "limits", "nvidia.com/gpu") or 0
        cpus = resource(container, "requests", "cpu") or 0
        if not gpus:
            continue
        if pod.role == "head":
            yield f"{pod.where}: a GPU that nothing uses"
        if cpus < CPUS_PER_GPU * gpus:
            yield f"{pod.where}: {cpus} CPUs for {gpus} GPUs"
        if resource(container, "requests", "nvidia.com/gpu") != gpus:
            yield f"{pod.where}: requests fewer or more GPUs than its limit"
        if "nvidia.com/gpu" not in [one.get("key") for one in pod.spec.get("tolerations", [])]:
            yield f"{pod.where}: does not tolerate GPU nodes"


@policy
def grace_fits_drain(manifests: list[Manifest]) -> Iterator[str]:
    """Ray's drain ends before the pod is killed, with time left to save a checkpoint."""
    for pod in ray_pods(manifests):
        environment = {one["name"]: one.get("value") for one in pod.spec["containers"][0].get("env", [])}
        drain = float(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") or 0)
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if not 0 < drain <= grace - 15:
            yield f"{pod.where}: drains for {drain:g} s of {grace} s"


@policy
def image_pinned(manifests: list[Manifest]) -> Iterator[str]:
    """All containers of a deployment run one image with a pinned version."""
    images = set()
    for pod in all_pods(manifests):
        images |= {container["image"] for container in pod.spec["containers"]}
    for image in images:
        tag = image.rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest") and "@sha256:" not in image:
            yield f"image {image}: no pinned version"
    if len(images) > 1:
        yield f"images {', '.join(sorted(images))}: more than one"
