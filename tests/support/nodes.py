"""A Ray cluster of several nodes on this machine that can be added and removed, for tests and benchmarks of faults."""

import subprocess
import sys
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster


class Nodes:
    """A head node for the drivers, and nodes with one CPU each."""

    def __init__(self, nodes: int) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20, "include_dashboard": False},
        )
        self.address = self.cluster.address
        self.nodes = [self.add() for _ in range(nodes)]

    def add(self) -> object:
        """Add a node."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20)

    def remove(self, pid: int) -> None:
        """Remove the node that a process runs on."""
        node = self._of(pid)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def drain(self, pid: int) -> None:
        """Announce that the node of a process will be removed, as a cloud does for a preempted machine."""
        ray = str(Path(sys.executable).with_name("ray"))
        options = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "a test",
            "--deadline-remaining-seconds",
            "600",
        ]
        node_id = self._of(pid).node_id  # type: ignore[attr-defined]
        command = [ray, "drain-node", "--address", self.address, "--node-id", node_id, *options]
        subprocess.run(command, check=True, capture_output=True)

    def _of(self, pid: int) -> object:
        return next(node for node in self.nodes if _is_below(pid, node))


def _is_below(pid: int, node: object) -> bool:
    """Return whether a node's raylet started a process."""
    raylets = {info.process.pid for info in node.all_processes["raylet"]}  # type: ignore[attr-defined]
    return any(parent.pid in raylets for parent in psutil.Process(pid).parents())
