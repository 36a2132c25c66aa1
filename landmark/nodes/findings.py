"""What is wrong with a cluster, told from what its nodes say: one line each, with how to mend it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from landmark.nodes.survey import NodeFacts

Severity = Literal["error", "warning"]
MUST_AGREE = ("python", "ray", "torch", "torchvision", "landmark")
"""Packages whose versions a run's processes must share: objects, weights and collectives pass between them."""
GIB = 2**30
LEAST_STORE, LEAST_DISK = GIB // 4, 10 * GIB
CLOCK_WARNING_S, CLOCK_ERROR_S = 2.0, 300.0
"""S3 refuses requests that were signed 15 minutes before or after its own time; logs are hard to read long before."""
CPUS_A_GPU = 4
"""CPUs that decoding for one GPU takes at least: some 1,500 images/s a core, docs/decisions.md."""


@dataclass(kw_only=True, frozen=True)
class Finding:
    """Something that will stop a run, or slow it down."""

    severity: Severity
    where: str
    """Addresses of the nodes."""
    text: str
    """What was seen, what was expected, how to mend it."""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{self.severity}: {where}{self.text}"


def findings_of(nodes: Sequence[NodeFacts], driver: Mapping[str, str]) -> list[Finding]:
    """Return what is wrong with a cluster's living nodes, errors first; driver: versions here, by package."""
    alive = [node for node in nodes if node.alive]
    answered = [node for node in alive if node.error is None]
    found = [
        Finding(severity="error", where=node.address, text=f"{node.error}; look at this node's logs")
        for node in alive
        if node.error is not None
    ]
    for check in (_storage, _gpus, _clocks, _room_for_objects, _feeding, _working_head):
        found += check(answered)
    found += _versions(answered, driver)
    return sorted(found, key=lambda one: one.severity != "error")


def _storage(nodes: Iterable[NodeFacts]) -> list[Finding]:
    def told(node: NodeFacts) -> list[str]:
        return [reason for reason in node.storage.values() if reason is not None]

    return _grouped(
        nodes, "error", lambda node: "; ".join(told(node)), "{}; give this node the credentials and a way there"
    )


def _gpus(nodes: Sequence[NodeFacts]) -> list[Finding]:
    def lacking(node: NodeFacts) -> str:
        if node.gpus <= len(node.devices):
            return ""
        return f"Ray counts {node.gpus:g} GPUs, torch can use {len(node.devices)}"

    advice = "{}; mend the driver, or the container's GPU access, or install torch with CUDA"
    found = _grouped(nodes, "error", lacking, advice)
    kinds = Counter(name for node in nodes for name in node.devices)
    if len(kinds) > 1:
        told = ", ".join(f"{count} x {name}" for name, count in kinds.most_common())
        found.append(
            Finding(
                severity="warning", where="", text=f"GPUs differ ({told}): a run waits for the slowest in each step"
            )
        )
    return found


def _clocks(nodes: Iterable[NodeFacts]) -> list[Finding]:
    found = []
    for node in nodes:
        if abs(node.clock_s) < CLOCK_WARNING_S:
            continue
        severity: Severity = "error" if abs(node.clock_s) >= CLOCK_ERROR_S else "warning"
        way = "ahead of" if node.clock_s > 0 else "behind"
        text = f"its clock is {abs(node.clock_s):.1f} s {way} this machine's; keep clocks by NTP: S3 refuses far ones"
        found.append(Finding(severity=severity, where=node.address, text=text))
    return found


def _room_for_objects(nodes: Sequence[NodeFacts]) -> list[Finding]:
    def store(node: NodeFacts) -> str:
        if node.shm and node.object_store > node.shm:
            return (
                f"its object store of {node.object_store / GIB:.1f} GiB exceeds /dev/shm ({node.shm / GIB:.1f} GiB) and lies "
                "on disk, many times slower; enlarge /dev/shm (Kubernetes: an emptyDir of medium Memory)"
            )
        if node.object_store < LEAST_STORE:
            return f"its object store has {node.object_store >> 20} MiB, expected {LEAST_STORE >> 20}; raise --object-store-memory"
        return ""

    def disk(node: NodeFacts) -> str:
        if node.disk_free >= LEAST_DISK:
            return ""
        return (
            f"{node.disk_free / GIB:.1f} GiB of disk are free for spilling and logs, expected {LEAST_DISK // GIB}; "
            "make room, or give Ray another --temp-dir"
        )

    return _grouped(nodes, "warning", store, "{}") + _grouped(nodes, "warning", disk, "{}")


def _feeding(nodes: Iterable[NodeFacts]) -> list[Finding]:
    def told(node: NodeFacts) -> str:
        if not node.gpus or node.cpus >= CPUS_A_GPU * node.gpus:
            return ""
        return f"{node.cpus:g} CPUs feed {node.gpus:g} GPUs, expected {CPUS_A_GPU} each"

    return _grouped(nodes, "warning", told, "{}; take larger machines, or decode on CPU nodes: --loader.decode data")


def _working_head(nodes: Sequence[NodeFacts]) -> list[Finding]:
    if len(nodes) < 2:
        return []
    text = "the head gives away {}: its failure ends the cluster; start it with --num-cpus 0 --num-gpus 0"
    heads = [node for node in nodes if node.head]
    return _grouped(heads, "warning", lambda node: f"{node.cpus:g} CPUs" if node.cpus else "", text)


def _versions(nodes: Sequence[NodeFacts], driver: Mapping[str, str]) -> list[Finding]:
    found = []
    for name in sorted({name for node in nodes for name in node.versions} | set(driver)):
        here = driver.get(name, "none")
        advice = f"{name} is {{}} there, {here} here; install the same (constraints.txt), or use one image"
        severity: Severity = "error" if name in MUST_AGREE else "warning"

        def differing(node: NodeFacts, name: str = name, here: str = here) -> str:
            there = node.versions.get(name, "none")
            return there if there != here else ""

        found += _grouped(nodes, severity, differing, advice)
    return found


def _grouped(
    nodes: Iterable[NodeFacts], severity: Severity, told: Callable[[NodeFacts], str], text: str
) -> list[Finding]:
    """Return one finding for all nodes that tell the same; told: what a node has to say, empty for nothing."""
    groups: dict[str, list[str]] = {}
    for node in nodes:
        if said := told(node):
            groups.setdefault(said, []).append(node.address)
    return [
        Finding(severity=severity, where=_few(addresses), text=text.format(said)) for said, addresses in groups.items()
    ]


def _few(addresses: list[str], most: int = 4) -> str:
    more = f" and {len(addresses) - most} more nodes" if len(addresses) > most else ""
    return ", ".join(addresses[:most]) + more
