"""Room for trials on the cluster: how many run at a time, by CPUs, GPUs and memory, and what each one reserves."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch
from ray import tune

from landmark.config import Recipe, WorkersConfig
from landmark.search.packing import fitting_in_memory, gpu_share, trial_memory
from landmark.training.distributed import gpus_per_worker
from landmark.training.resources import head_resource, need_of, room_for


@dataclass(kw_only=True, frozen=True)
class Room:
    """What trials have, all alike: a process that served one serves the next."""

    workers: WorkersConfig
    """The processes of a trial, the share of a GPU decided."""
    slots: int
    """Trials at a time."""
    placement: tune.PlacementGroupFactory
    """What a trial reserves."""


def find_room(
    workers: WorkersConfig, recipes: Sequence[Recipe], classes: int, total: int, max_concurrent: int | None
) -> Room:
    """Return the room of the connected cluster for up to `total` trials.

    Where the cluster has GPUs and workers.gpus says nothing, a small trial of one process takes a half, a third or a quarter
    of one. Raises UserError where there is no room for one trial and its readers.
    """
    on_gpu = gpus_per_worker(workers.gpus) > 0
    memory = max(trial_memory(recipe, classes, workers.most, gpu=on_gpu) for recipe in recipes)
    if on_gpu and workers.gpus is None and workers.in_process:
        workers = dataclasses.replace(workers, gpus=gpu_share(memory, gpu_bytes()))
    most = min(total, max_concurrent or total)
    needs = {need_of(workers, recipe.loader) for recipe in recipes}
    slots = min(room_for(need, "a trial", most) for need in needs)
    limited = max_concurrent is not None
    if not on_gpu and (fitting := _fitting(memory, workers)) < slots:
        slots, limited = fitting, True
    by_ray = any(recipe.loader.stream == "ray" for recipe in recipes)
    return Room(workers=workers, slots=slots, placement=_placement(workers, slots, limited=limited or by_ray))


def gpu_bytes() -> int:
    """Return the memory of the cluster's smallest GPU that a task finds, in bytes."""

    def measure() -> int:
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0

    nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1)
    tasks = [ray.remote(num_gpus=1, num_cpus=0, scheduling_strategy="SPREAD")(measure).remote() for _ in range(nodes)]
    return min(ray.get(tasks))


def _fitting(memory: int, workers: WorkersConfig) -> int:
    """Return how many trials the nodes' main memory holds, as Ray counts it: one at least, as `memory` is an estimate."""
    nodes = [node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return max(1, sum(fitting_in_memory(memory, int(node)) for node in nodes) // workers.least)


def _placement(workers: WorkersConfig, slots: int, *, limited: bool) -> tune.PlacementGroupFactory:
    """Return what a trial reserves: its process's CPUs and GPUs, and its share of the slots where these are limited."""
    share = {head_resource(): math.floor(1e4 / slots) / 1e4}
    if not workers.in_process:  # Ray Train reserves what the workers need by itself
        return tune.PlacementGroupFactory([{"CPU": 0.0, **share}])
    gpus = gpus_per_worker(workers.gpus)
    process = {"CPU": workers.cpus} | ({"GPU": gpus} if gpus else {})
    return tune.PlacementGroupFactory([process, share] if limited else [process])
