"""Capacity check: whether the cluster's nodes have enough resources for a run's workers and data readers."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray

from landmark.config import LoaderConfig, TrainConfig, UserError, WorkersConfig
from landmark.training.distributed.ray_train import gpus_per_worker
from landmark.training.loop.loaders import resolve_stream

Bundle = tuple[float, float]
"""CPUs and GPUs that one process requires, or that one node has."""
TINY = 1e-6


@dataclass(kw_only=True, frozen=True)
class ResourceRequest:
    """Concurrent resources of one run or trial: training processes, and the Ray Data actors that read and decode for
    them."""

    workers: int
    """Number of training processes."""
    cpus: float
    """CPUs per training process."""
    gpus: float
    """GPUs per training process."""
    readers: int
    """Number of readers of all workers and streams; 0 if threads of the workers read."""
    reader_cpus: float
    """CPUs per reader."""
    decoders: int = 0
    """Minimum number of decoders of all workers."""
    decoder_cpus: float = 0.0
    """CPUs per decoder."""

    def bundles(self) -> list[Bundle]:
        """Return the resources of each process, largest first."""
        actors = [(self.decoder_cpus, 0.0)] * self.decoders + [(self.reader_cpus, 0.0)] * self.readers
        return [(self.cpus, self.gpus)] * self.workers + sorted(actors, reverse=True)

    def describe(self) -> str:
        """Return a description of the required resources."""
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        text = f"{self.workers} x {self.cpus:g} CPUs{gpus} for workers"
        text += f" + {self.readers} x {self.reader_cpus:g} CPUs for data readers" if self.readers else ""
        return text + (f" + {self.decoders} x {self.decoder_cpus:g} CPUs for decoders" if self.decoders else "")


def resource_request(workers: WorkersConfig, loader: LoaderConfig) -> ResourceRequest:
    """Return the resources that a run with these settings requires on the connected cluster."""
    by_ray = resolve_stream(loader, workers.most).stream == "ray"
    return ResourceRequest(
        workers=workers.least,
        cpus=workers.reserved_cpus,
        gpus=gpus_per_worker(workers.gpus),
        # A single process reads its validation split with a thread.
        readers=workers.least * loader.readers * (1 if workers.in_process else 2) if by_ray else 0,
        reader_cpus=loader.reader_cpus,
        decoders=workers.least * loader.min_decoders if loader.decode == "data" else 0,
        decoder_cpus=loader.data_cpus,
    )


def effective_workers(workers: WorkersConfig, loaders: Iterable[LoaderConfig]) -> WorkersConfig:
    """Return the workers with resolved CPUs, for runs or trials with these loaders on the connected cluster.

    A GPU consumes images that several CPUs decode, so a process with GPUs gets its fraction of the node's CPUs. Prints
    the result.
    """
    needs = {resource_request(workers, loader) for loader in loaders}
    if workers.cpus is not None or not all(need.gpus for need in needs):
        return dataclasses.replace(workers, cpus=workers.reserved_cpus)
    nodes = cluster_nodes()
    cpus = min(derived_cpus(need, nodes) for need in needs)
    print(f"each training process reserves {cpus} CPUs, its fraction of its node's CPUs (set workers.cpus to override)")
    return dataclasses.replace(workers, cpus=float(cpus))


def derived_cpus(need: ResourceRequest, nodes: list[Bundle]) -> int:
    """Return the CPUs per process with GPUs: the nodes' minimum CPUs per GPU, or fewer so that as many runs fit."""
    per_gpu = min((cpus / gpus for cpus, gpus in nodes if gpus), default=1.0)
    most = math.ceil(sum(gpus for _, gpus in nodes) / need.gpus)
    fitting = count_fitting(dataclasses.replace(need, cpus=1.0), nodes, most)
    for cpus in range(int(per_gpu * need.gpus + TINY), 1, -1):
        if count_fitting(dataclasses.replace(need, cpus=float(cpus)), nodes, most) == fitting:
            return cpus
    return 1


def check_capacity(config: TrainConfig) -> None:
    """Raise UserError with possible fixes unless the connected cluster has enough resources for a run."""
    capacity_for(resource_request(config.workers, config.loader), "the run", 1)


def capacity_for(need: ResourceRequest, what: str, most: int) -> int:
    """Return how many of `what` fit on the connected cluster at a time, up to `most`.

    Counts the total resources of the nodes, not the free ones, because a run waits for resources that others use.
    Raises UserError with settings that would fit if there are not enough resources for one.
    """
    nodes = cluster_nodes()
    capacity = count_fitting(need, nodes, most)
    if capacity:
        return capacity
    have = ", ".join(f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "") for cpus, gpus in nodes)
    raise UserError(
        f"not enough resources for {what}: it requires {need.describe()}, but the cluster's nodes have {have}; {advice(need, nodes)}"
    )


def cluster_nodes() -> list[Bundle]:
    """Return the CPUs and GPUs of each live node."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sorted(((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in found), reverse=True)


def count_fitting(need: ResourceRequest, nodes: Iterable[Bundle], most: int) -> int:
    """Return how many runs fit on the nodes at a time, up to `most`, with first-fit placement of processes."""
    free = [list(node) for node in nodes]
    for count in range(most):
        for cpus, gpus in need.bundles():
            place = next((node for node in free if node[0] >= cpus - TINY and node[1] >= gpus - TINY), None)
            if place is None:
                return count
            place[0] -= cpus
            place[1] -= gpus
    return most


def advice(need: ResourceRequest, nodes: list[Bundle]) -> str:
    """Return the single settings that would make the run fit."""
    readers_each, decoders_each = need.readers // need.workers, need.decoders // need.workers
    quarters = [number / 4 for number in range(int(4 * need.cpus), 0, -1)]
    ways: dict[str, list[tuple[float, dict[str, Any]]]] = {
        "workers.count": [
            (count, {"workers": count, "readers": readers_each * count, "decoders": decoders_each * count})
            for count in range(need.workers - 1, 0, -1)
        ],
        "workers.cpus": [(value, {"cpus": value}) for value in quarters if value < need.cpus],
        # Processes that train one model together cannot share a GPU: NCCL rejects two processes on one GPU.
        "workers.gpus": [
            (value, {"gpus": value})
            for value in ((4, 2, 1, 0.5, 0.25, 0) if need.workers == 1 else (4, 2, 1, 0))
            if value < need.gpus
        ],
        "loader.reader_cpus": [
            (value, {"reader_cpus": value}) for value in (0.25, 0.1, 0.05) if need.readers and value < need.reader_cpus
        ],
    }
    if need.decoders:
        quarters = [number / 4 for number in range(int(4 * need.decoder_cpus), 0, -1)]
        ways["loader.data_cpus"] = [(value, {"decoder_cpus": value}) for value in quarters if value < need.decoder_cpus]
    found = []
    for key, options in ways.items():
        fitting = (value for value, change in options if count_fitting(dataclasses.replace(need, **change), nodes, 1))
        if (value := next(fitting, None)) is not None:
            found.append(f"lower {key} to {value:g}")
    if need.decoders and count_fitting(dataclasses.replace(need, decoders=0), nodes, 1):
        found.append("set loader.decode to worker")
    if need.readers and count_fitting(dataclasses.replace(need, readers=0), nodes, 1) and not need.decoders:
        found.append("set loader.stream to thread")
    return ", ".join([*found, "or add nodes"]) if found else "lower workers.count and workers.cpus, or add nodes"
