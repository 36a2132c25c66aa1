"""Inspection of a cluster's nodes by one actor per node, in parallel. Does not import torch, so that actors start fast."""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.worker import _global_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from landmark.config import UserError
from landmark.environment import package_versions
from landmark.runtime import HEAD
from landmark.storage import check_writable, locate

CLOCK_READINGS = 3
STORAGE_DEADLINE_S = "15"
"""Seconds for which a node tries to reach the storage; training retries for minutes."""
SHM = Path("/dev/shm")


@dataclass(kw_only=True)
class NodeFacts:
    """Facts that a node reports about itself. Sizes are in bytes."""

    address: str
    host: str
    head: bool
    alive: bool = True
    cpus: float = 0.0
    """CPUs that Ray schedules on the node, which may differ from the machine's; likewise for gpus."""
    gpus: float = 0.0
    memory: int = 0
    object_store: int = 0
    cpus_used: float = 0.0
    gpus_used: float = 0.0
    error: str | None = None
    """Why the node did not report the remaining facts."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and packages, by name."""
    devices: list[str] = field(default_factory=list)
    """Names of the GPUs that torch can use."""
    shm: int = 0
    """Size of /dev/shm, which holds the object store."""
    disk_free: int = 0
    """Free space on the disk to which Ray spills objects."""
    disk_total: int = 0
    memory_used: int = 0
    memory_total: int = 0
    store_free: int = 0
    """Free bytes in the object store."""
    clock_s: float = 0.0
    """Seconds by which its clock is ahead of this process's."""
    storage: dict[str, str | None] = field(default_factory=dict)
    """URI -> why the node cannot use it; None if it can."""
    metrics: str = ""
    """Output of its metrics exporter, in the Prometheus text format."""


class Probe:
    """Actor that inspects the machine that it runs on."""

    def look(self, read: str | None, write: str | None) -> dict[str, Any]:
        """Return the values of `NodeFacts`; tries to read the dataset `read` and to write to the folder `write`."""
        session = Path(_global_node.get_session_dir_path()) if _global_node is not None else Path("/tmp")
        disk, memory = shutil.disk_usage(session), psutil.virtual_memory()
        return {
            "host": socket.gethostname(),
            "versions": {"python": platform.python_version(), **package_versions()},
            "devices": _devices(),
            "shm": shutil.disk_usage(SHM).total if SHM.exists() else 0,
            "disk_free": disk.free,
            "disk_total": disk.total,
            "memory_used": memory.total - memory.available,
            "memory_total": memory.total,
            "storage": _reached(read, write),
        }

    def clock(self) -> float:
        """Return this machine's unix time."""
        return time.time()

    def metrics(self, address: str, port: int) -> str:
        """Return the output of this node's metrics exporter; empty if it does not answer."""
        host = f"[{address}]" if ":" in address else address
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return ""


def survey(
    timeout_s: float, *, read: str | None = None, write: str | None = None, metrics: bool = False
) -> list[NodeFacts]:
    """Return the facts of each node of the connected cluster: the head first, dead nodes last.

    read: a packed dataset that each node tries to read. write: a folder that each node tries to write to. Both use the
    node's own credentials. metrics: whether to read each node's metrics exporter. A node that does not answer within
    timeout_s has an error.
    """
    nodes = ray.nodes()
    free = ray._private.state.available_resources_per_node()
    found = []
    impatient = {"env_vars": {"LANDMARK_STORAGE_DEADLINE_S": STORAGE_DEADLINE_S}} if read or write else None
    with _probes([node for node in nodes if node["Alive"]], impatient) as probes:
        looks = {node: probe.look.remote(read, write) for node, probe in probes.items()}
        deadline = time.monotonic() + timeout_s
        for node in nodes:
            facts = _known(node, free.get(node["NodeID"], {}))
            found.append(facts)
            if node["NodeID"] not in probes:
                continue
            probe, left = probes[node["NodeID"]], max(1.0, deadline - time.monotonic())
            try:
                for name, value in ray.get(looks[node["NodeID"]], timeout=left).items():
                    setattr(facts, name, value)
                facts.clock_s = _clock_difference(probe)
                if metrics:
                    port = node["MetricsExportPort"]
                    facts.metrics = ray.get(probe.metrics.remote(facts.address, port), timeout=10)
            except ray.exceptions.GetTimeoutError:
                facts.error = f"no answer within {timeout_s:g} s"
            except ray.exceptions.RayError as error:
                lines = [line for line in str(error).splitlines() if line.strip()]
                facts.error = lines[-1].strip() if lines else type(error).__name__
    return sorted(found, key=lambda facts: (not facts.alive, not facts.head, facts.address))


@contextlib.contextmanager
def _probes(nodes: Sequence[dict[str, Any]], environment: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Start a probe on each node; it reserves no resources.

    Without a runtime environment, Ray runs it in an idle worker process that it keeps ready.
    """
    probes = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote = ray.remote(num_cpus=0, scheduling_strategy=there, runtime_env=environment)(Probe)
        probes[node["NodeID"]] = remote.remote()
    try:
        yield probes
    finally:
        for probe in probes.values():
            ray.kill(probe)


def _known(node: dict[str, Any], free: dict[str, float]) -> NodeFacts:
    """Return the facts in Ray's node table."""
    resources = node["Resources"]
    cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    return NodeFacts(
        address=node["NodeManagerAddress"],
        host=node["NodeManagerHostname"],
        head=HEAD in resources,
        alive=bool(node["Alive"]),
        cpus=cpus,
        gpus=gpus,
        memory=int(resources.get("memory", 0)),
        object_store=int(resources.get("object_store_memory", 0)),
        cpus_used=cpus - float(free.get("CPU", 0)) if node["Alive"] else 0.0,
        gpus_used=gpus - float(free.get("GPU", 0)) if node["Alive"] else 0.0,
        store_free=int(free.get("object_store_memory", 0)),
    )


def _clock_difference(probe: Any) -> float:
    """Return the seconds by which a node's clock is ahead of ours, from the reading with the shortest round trip."""
    readings = []
    for _ in range(CLOCK_READINGS):
        before = time.time()
        there = ray.get(probe.clock.remote(), timeout=10)
        after = time.time()
        readings.append((after - before, there - (before + after) / 2))
    return min(readings)[1]


def _reached(read: str | None, write: str | None) -> dict[str, str | None]:
    """Return URI -> why the dataset cannot be read or the folder cannot be written to; None if it can."""
    found: dict[str, str | None] = {}
    if read is not None:
        try:
            (locate(read) / "manifest.json").read_bytes()
            found[read] = None
        except UserError as error:
            found[read] = str(error)
    if write is not None:
        try:
            check_writable(locate(write))
            found[write] = None
        except UserError as error:
            found[write] = str(error)
    return found


def _devices() -> list[str]:
    """Return the names of the GPUs that torch can use, from a separate process: Ray hides the GPUs from this one."""
    if shutil.which("nvidia-smi") is None:
        return []
    code = "import torch; print(*(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())), sep='\\n')"
    shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    asked = subprocess.run([sys.executable, "-c", code], env=shown, capture_output=True, text=True, check=False)
    return asked.stdout.split("\n")[:-1] if asked.returncode == 0 else []
