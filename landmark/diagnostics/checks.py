"""Checks of the facts that a cluster's nodes report: one line per problem, with its fix."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from landmark.diagnostics.inspect import NodeFacts

Severity = Literal["error", "warning"]
MUST_AGREE = ("python", "ray", "torch", "torchvision", "landmark")
"""Packages whose versions must match across a run's processes, which exchange objects, weights and collectives."""
GIB = 2**30
MIN_STORE, MIN_DISK = GIB // 4, 10 * GIB
CLOCK_WARNING_S, CLOCK_ERROR_S = 2.0, 300.0
"""Clock differences, seconds. S3 rejects requests whose signing time is off by 15 minutes; logs get hard to read earlier."""
CPUS_A_GPU = 4
"""Minimum number of CPUs that decode for one GPU: a core decodes about 1,500 images/s (docs/explanation/decisions)."""


@dataclass(kw_only=True, frozen=True)
class Finding:
    """A problem that makes runs fail or slows them down."""

    severity: Severity
    where: str
    """Addresses of the affected nodes; empty for the whole cluster."""
    text: str
    """The observed value, the expected value, and the fix."""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{self.severity}: {where}{self.text}"


def findings_of(nodes: Sequence[NodeFacts], driver: Mapping[str, str]) -> list[Finding]:
    """Return the problems of a cluster's live nodes, errors first.

    driver: package -> version in this process.
    """
    alive = [node for node in nodes if node.alive]
    answered = [node for node in alive if node.error is None]
    found = [
        Finding(severity="error", where=node.address, text=f"{node.error}; check this node's logs")
        for node in alive
        if node.error is not None
    ]
    for check in (_storage, _gpus, _clocks, _room_for_objects, _feeding, _working_head):
        found += check(answered)
    found += _versions(answered, driver)
    return sorted(found, key=lambda one: one.severity != "error")


def _storage(nodes: Iterable[NodeFacts]) -> list[Finding]:
    def describe(node: NodeFacts) -> list[str]:
        return [reason for reason in node.storage.values() if reason is not None]

    return _grouped(
        nodes,
        "error",
        lambda node: "; ".join(describe(node)),
        "{}; give this node credentials and network access to the storage",
    )


def _gpus(nodes: Sequence[NodeFacts]) -> list[Finding]:
    def lacking(node: NodeFacts) -> str:
        if node.gpus <= len(node.devices):
            return ""
        return f"Ray counts {node.gpus:g} GPUs, but torch can use {len(node.devices)}"

    advice = "{}; fix the GPU driver or the container's GPU access, or install torch with CUDA"
    found = _grouped(nodes, "error", lacking, advice)
    kinds = Counter(name for node in nodes for name in node.devices)
    if len(kinds) > 1:
        describe = ", ".join(f"{count} x {name}" for name, count in kinds.most_common())
        found.append(
            Finding(
                severity="warning",
                where="",
                text=f"GPU types differ ({describe}): each training step waits for the slowest GPU",
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
        text = f"its clock is {abs(node.clock_s):.1f} s {way} this machine's; synchronize clocks with NTP: S3 rejects skewed requests"
        found.append(Finding(severity=severity, where=node.address, text=text))
    return found


def _room_for_objects(nodes: Sequence[NodeFacts]) -> list[Finding]:
    def store(node: NodeFacts) -> str:
        if node.shm and node.object_store > node.shm:
            return (
                f"its object store of {node.object_store / GIB:.1f} GiB exceeds /dev/shm ({node.shm / GIB:.1f} GiB) and is stored "
                "on disk, which is much slower; enlarge /dev/shm (Kubernetes: an emptyDir of medium Memory)"
            )
        if node.object_store < MIN_STORE:
            return f"its object store has {node.object_store >> 20} MiB, expected {MIN_STORE >> 20} or more; raise --object-store-memory"
        return ""

    def disk(node: NodeFacts) -> str:
        if node.disk_free >= MIN_DISK:
            return ""
        return (
            f"{node.disk_free / GIB:.1f} GiB of disk free for spilling and logs, expected {MIN_DISK // GIB} or more; "
            "free disk space, or give Ray another --temp-dir"
        )

    return _grouped(nodes, "warning", store, "{}") + _grouped(nodes, "warning", disk, "{}")


def _feeding(nodes: Iterable[NodeFacts]) -> list[Finding]:
    def describe(node: NodeFacts) -> str:
        if not node.gpus or node.cpus >= CPUS_A_GPU * node.gpus:
            return ""
        return f"{node.cpus:g} CPUs for {node.gpus:g} GPUs, expected {CPUS_A_GPU} or more per GPU"

    return _grouped(nodes, "warning", describe, "{}; use larger machines, or decode on CPU nodes: --loader.decode data")


def _working_head(nodes: Sequence[NodeFacts]) -> list[Finding]:
    if len(nodes) < 2:
        return []
    text = "the head node offers {} for work, but its failure ends the cluster; start it with --num-cpus 0 --num-gpus 0"
    heads = [node for node in nodes if node.head]
    return _grouped(heads, "warning", lambda node: f"{node.cpus:g} CPUs" if node.cpus else "", text)


def _versions(nodes: Sequence[NodeFacts], driver: Mapping[str, str]) -> list[Finding]:
    found = []
    for name in sorted({name for node in nodes for name in node.versions} | set(driver)):
        here = driver.get(name, "none")
        advice = f"{name} is {{}} there, {here} here; install the same version (constraints.txt), or use one image"
        severity: Severity = "error" if name in MUST_AGREE else "warning"

        def differing(node: NodeFacts, name: str = name, here: str = here) -> str:
            there = node.versions.get(name, "none")
            return there if there != here else ""

        found += _grouped(nodes, severity, differing, advice)
    return found


def _grouped(
    nodes: Iterable[NodeFacts], severity: Severity, describe: Callable[[NodeFacts], str], text: str
) -> list[Finding]:
    """Return one finding per distinct text; describe: returns a node's text, empty if it has no problem."""
    groups: dict[str, list[str]] = {}
    for node in nodes:
        if said := describe(node):
            groups.setdefault(said, []).append(node.address)
    return [
        Finding(severity=severity, where=_few(addresses), text=text.format(said)) for said, addresses in groups.items()
    ]


def _few(addresses: list[str], most: int = 4) -> str:
    more = f" and {len(addresses) - most} more nodes" if len(addresses) > most else ""
    return ", ".join(addresses[:most]) + more
