"""Capacity of the cluster for trials: how many run at a time, by CPUs, GPUs and memory, and what each reserves."""

import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ray
import torch
from ray import tune

from landmark.config import Recipe, WorkersConfig
from landmark.search.trials.resource_estimates import GIB, PROCESS_BYTES, fitting_in_memory, gpu_fraction, trial_memory
from landmark.training.distributed.capacity import (
    ResourceRequest,
    capacity_for,
    cluster_nodes,
    count_fitting,
    effective_workers,
    resource_request,
)
from landmark.training.distributed.ray_train import gpus_per_worker

REFRESH_S = 5.0
"""Seconds between two looks at the cluster's nodes."""
GPU_TIMEOUT_S = 60.0
"""Seconds that the tasks that measure GPU memory wait for a free GPU."""
GPU_GIB = {
    **{"K80": 11, "P4": 7, "P100": 12, "T4": 14, "V100": 15, "L4": 22, "A10": 22, "A10G": 22, "L40S": 44},
    **{"A100": 39, "A100-40G": 39, "A100-80G": 79, "H100": 79, "H200": 139, "B200": 178},
}
"""Ray's name of a GPU type -> its usable memory in GiB; the smallest one if the type has several sizes."""


class Slots:
    """Number of concurrent trials, which follows the nodes of the cluster."""

    def __init__(self, needs: Iterable[ResourceRequest], most: int, memory: int) -> None:
        """needs: the resources of a trial, for each kind of trial. memory: main memory of a trial's process in bytes, 0 if
        it does not matter."""
        self.needs = list(needs)
        self.most = most
        self.memory = memory
        self._known = 0
        self._measured = -math.inf

    def __call__(self) -> int:
        """Return the number of concurrent trials now; at least 1."""
        if time.monotonic() - self._measured >= REFRESH_S:
            self._known, self._measured = self.fitting(), time.monotonic()
        return max(1, self._known)

    def fitting(self) -> int:
        """Return the number of trials that fit on the nodes, up to the maximum."""
        nodes = cluster_nodes()
        found = min(count_fitting(need, nodes, self.most) for need in self.needs)
        if not self.memory:
            return found
        free = [int(node["Resources"].get("memory", 0.0)) for node in ray.nodes() if node["Alive"]]
        processes = sum(fitting_in_memory(self.memory, node) for node in free)
        # The memory is an estimate, so one trial always fits.
        return min(found, max(1, min(processes // need.workers for need in self.needs)))


@dataclass(kw_only=True, frozen=True)
class StudyCapacity:
    """Resources of the trials. All trials get the same, because a process is reused for the next trial."""

    workers: WorkersConfig
    """The processes of a trial, with the fraction of a GPU resolved."""
    slots: Slots
    placement: tune.PlacementGroupFactory
    """The reservation of a trial."""

    def requires(self) -> str:
        """Return a description of a trial's resources."""
        gpus = gpus_per_worker(self.workers.gpus)
        each = f"{self.workers.reserved_cpus:g} CPUs" + (f", {gpus:g} GPUs" if gpus else "")
        return each if self.workers.in_process else f"{self.workers.count} x ({each})"


def find_capacity(
    workers: WorkersConfig, recipes: Sequence[Recipe], classes: int, total: int, max_concurrent: int | None
) -> StudyCapacity:
    """Return the capacity of the connected cluster for up to `total` trials.

    If the cluster has GPUs and workers.gpus is unset, a small trial of one process takes 1/2, 1/3 or 1/4 of a GPU. Raises
    UserError if the resources do not suffice for one trial and its readers.
    """
    on_gpu = gpus_per_worker(workers.gpus) > 0
    memory = max(trial_memory(recipe, classes, workers.most, gpu=on_gpu) for recipe in recipes)
    if on_gpu and workers.gpus is None and workers.in_process:
        workers = dataclasses.replace(workers, gpus=gpu_fraction(memory, gpu_bytes()))
    workers = effective_workers(workers, [recipe.loader for recipe in recipes])
    most = min(total, max_concurrent or total)
    needs = {resource_request(workers, recipe.loader) for recipe in recipes}
    for need in needs:
        capacity_for(need, "a trial", 1)
    slots = Slots(needs, most, 0 if on_gpu else memory)
    return StudyCapacity(workers=workers, slots=slots, placement=_placement(workers))


def gpu_bytes(timeout_s: float = GPU_TIMEOUT_S) -> int:
    """Return the memory in bytes of the smallest GPU that the measuring tasks find.

    If other work holds all GPUs for `timeout_s`, return the memory of the smallest GPU type that Ray names, and print a
    note; 0 if Ray names no known type.
    """

    def measure() -> int:
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0

    nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1)
    tasks = [ray.remote(num_gpus=1, num_cpus=0, scheduling_strategy="SPREAD")(measure).remote() for _ in range(nodes)]
    found, waiting = ray.wait(tasks, num_returns=nodes, timeout=timeout_s)
    for task in waiting:
        ray.cancel(task, force=True)
    if found:
        return min(ray.get(found))
    representatives = [
        name.partition(":")[2] for name in ray.cluster_resources() if name.startswith("accelerator_type:")
    ]
    kind = min(representatives, key=lambda name: GPU_GIB.get(name, 0), default="")
    gib = GPU_GIB.get(kind, 0)
    assumed = f"{gib} GiB ({kind}) assumed" if gib else "each trial takes a whole GPU"
    print(
        f"note: all GPUs of the cluster are in use; their memory could not be measured within {timeout_s:g} s: {assumed}; "
        "set --workers.gpus to the GPUs per trial",
        file=sys.stderr,
        flush=True,
    )
    return gib * GIB


def _placement(workers: WorkersConfig) -> tune.PlacementGroupFactory:
    """Return the reservation of a trial; the queue limits the number of concurrent trials.

    The process that coordinates several workers runs on any node with enough memory; Ray Train reserves the workers'
    resources.
    """
    if not workers.in_process:
        return tune.PlacementGroupFactory([{"CPU": 0.0, "memory": PROCESS_BYTES}])
    gpus = gpus_per_worker(workers.gpus)
    return tune.PlacementGroupFactory([{"CPU": workers.reserved_cpus} | ({"GPU": gpus} if gpus else {})])
