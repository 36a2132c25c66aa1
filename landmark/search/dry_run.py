"""`landmark tune --dry-run`: the trials of a study, the resources of each, and the estimated total cost."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from landmark.config import SchedulerConfig
from landmark.data.cache.format import CacheSizes
from landmark.data.cache.split_cache import GIB
from landmark.data.dataset import PackedDataset
from landmark.progress import clock
from landmark.search.schedulers.ray_schedulers import bracket_sizes
from landmark.search.spaces.space import Space, TrialSpec
from landmark.search.trials.resource_estimates import trial_footprint, trial_memory
from landmark.search.trials.shared_cache import shared_sizes
from landmark.table import aligned, shown_value
from landmark.training.distributed.local import default_device

SHOWN_TRIALS = 60
TRAINING_PASSES = 3
"""Cost of a training step in forward passes: the backward pass computes two gradients per product."""
RATE_S = 1.0
"""Seconds for which the compute throughput is measured."""


@dataclass(kw_only=True, frozen=True)
class TrialCost:
    """The cost of one trial that runs to its last epoch."""

    plan: TrialSpec
    images: int
    """Training images, summed over all epochs."""
    memory: int
    """Bytes per training process."""
    flops: float
    """Floating-point operations of one image's forward pass at full size."""
    total_flops: float
    """Floating-point operations of all epochs: training, and validation after each."""


def dry_run_text(
    space: Space,
    plans: Sequence[TrialSpec],
    datasets: Mapping[str | None, PackedDataset],
    *,
    workers: int,
    resources: str,
    at_a_time: int,
    gpu: bool,
) -> str:
    """Return the trials that a study would run, and their estimated cost, as text.

    plans: `proposals.preview` of the space. datasets: by the names that trials use. workers: training processes per trial.
    resources: description of a trial's resources. at_a_time: number of concurrent trials. gpu: whether they train on GPUs.
    Takes about a second, because it measures this machine's compute throughput.
    """
    costs = [trial_cost(plan, datasets[plan.dataset], workers, gpu=gpu) for plan in plans]
    device, rate = measured_rate()
    lines = [
        f"{len(plans)} trials of {space.source}{_searched(space)}",
        _table(space, costs),
        f"each trial requires {resources}; {at_a_time} run at a time",
        *_totals(space, costs, at_a_time * workers, rate, device),
        _cache_line(shared_sizes(plans, datasets)),
    ]
    return "\n".join(lines)


def trial_cost(plan: TrialSpec, dataset: PackedDataset, workers: int, *, gpu: bool) -> TrialCost:
    """Return the cost of a trial; progressive resizing counts by the pixels of each epoch."""
    recipe, classes = plan.recipe, dataset.num_classes
    train, val = dataset.split("train").rows, dataset.split("val").rows
    flops = trial_footprint(recipe, classes).flops
    full = recipe.loader.image_size
    costs = [(recipe.shape(epoch)[0] / full) ** 2 for epoch in range(1, recipe.epochs + 1)]
    return TrialCost(
        plan=plan,
        images=train * recipe.epochs,
        memory=trial_memory(recipe, classes, workers, gpu=gpu),
        flops=flops,
        total_flops=flops * (TRAINING_PASSES * train * sum(costs) + val * recipe.epochs),
    )


def kept_fraction(scheduler: SchedulerConfig, epochs: Sequence[int]) -> float | None:
    """Return the expected fraction of all epochs that a scheduler runs; None if it depends only on results.

    epochs: the epochs of each trial. asha: 1 / reduction_factor of the trials pass each rung (Li et al. 2020). The actual
    fraction may be slightly higher, because the first trials to reach a rung always pass. hyperband: the fraction, bracket
    by bracket, if all trials are as long as the longest.
    """
    if scheduler.name in ("none", "pbt"):
        return 1.0
    longest, factor = max(epochs), scheduler.reduction_factor
    if scheduler.name == "asha":
        levels = rungs(scheduler.grace_epochs, factor, longest)
        return sum(_left(levels, factor, trial) for trial in epochs) / sum(epochs)
    if scheduler.name == "hyperband":
        made = bracket_sizes(scheduler, longest, len(epochs))
        return sum(_bracket_epochs(size, rounds, longest) for size, rounds in made) / (len(epochs) * longest)
    return None


def measured_rate(seconds: float = RATE_S) -> tuple[str, float]:
    """Return the device's name and its floating-point operations per second in training steps of a small model.

    The model has four 3x3 convolutions with batch norm on 64 feature maps of 56 x 56, like the middle of a ResNet. The
    device is the one that training on this machine would use, with torch's current number of threads.
    """
    device = default_device()
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())]
    model = nn.Sequential(*layers).to(device).to(memory_format=torch.channels_last)
    images = torch.randn(16, 64, 56, 56, device=device).to(memory_format=torch.channels_last)
    images.requires_grad_()  # the middle of a model also passes its gradient on
    counter = FlopCounterMode(display=False)
    with counter:  # warm-up: the first step is the slowest
        model(images).mean().backward()
    _wait(device)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        model(images).mean().backward()
        _wait(device)
        steps += 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return name, steps * counter.get_total_flops() / (time.perf_counter() - start)


def _searched(space: Space) -> str:
    if space.config.searcher.name == "listed":
        return ""
    return ": example points, because proposals depend on results"


def _table(space: Space, costs: Sequence[TrialCost]) -> str:
    keys = [key for key in space.keys if key != "epochs"]
    header = ["trial", *keys, "epochs", "images", "memory GiB", "GFLOP/image"]
    rows = [
        [
            cost.plan.name.split("-", 1)[0],
            *(shown_value(cost.plan.parameters[key]) for key in keys),
            str(cost.plan.recipe.epochs),
            f"{cost.images:,}",
            f"{cost.memory / 2**30:.1f}",
            f"{cost.flops / 1e9:.2f}",
        ]
        for cost in costs[:SHOWN_TRIALS]
    ]
    more = len(costs) - len(rows)
    return aligned([header, *rows]) + (f"\n  … and {more} more" if more > 0 else "")


def _totals(space: Space, costs: Sequence[TrialCost], devices: int, rate: float, device: str) -> list[str]:
    scheduler = space.config.scheduler
    epochs = [cost.plan.recipe.epochs for cost in costs]
    flops = sum(cost.total_flops for cost in costs)
    lines = [
        f"all epochs of all trials: {sum(epochs):,} epochs, {sum(cost.images for cost in costs):,} images, {flops:.3g} FLOP "
        f"({TRAINING_PASSES} forward passes per training image, 1 per validation image)",
        f"this machine's throughput: {rate / 1e9:,.0f} GFLOP/s ({device}; measured with a small convolutional model, without "
        "reading and decoding: trials are slower if these or memory limit them)",
        f"at that throughput: {clock(flops / rate)} on one such device; {clock(flops / rate / devices)} on {devices}, one per worker of "
        "the concurrent trials",
    ]
    fraction = kept_fraction(scheduler, epochs)
    if fraction is None:
        lines.append(
            f"{scheduler.name} stops trials by comparison with the others: the number of epochs that this saves is unknown in advance"
        )
    elif fraction < 1:
        lines.append(
            f"{scheduler.name} runs about {fraction:.0%} of the epochs ({_description(scheduler, max(epochs))}): "
            f"{math.ceil(fraction * sum(epochs)):,} epochs, {clock(fraction * flops / rate / devices)} on {devices} devices"
        )
    budget = space.config.budget
    limits = [f"{budget.epochs:,} epochs"] if budget.epochs is not None else []
    limits += [clock(budget.seconds)] if budget.seconds is not None else []
    return lines + ([f"the space's budget ends the study after {' or '.join(limits)}"] if limits else [])


def _description(scheduler: SchedulerConfig, longest: int) -> str:
    factor = scheduler.reduction_factor
    if scheduler.name == "hyperband":
        return f"1 of {factor:g} trials continues at each milestone of a bracket"
    levels = ", ".join(str(rung) for rung in rungs(scheduler.grace_epochs, factor, longest))
    return f"1 of {factor:g} trials continues after {levels} epochs"


def rungs(grace_epochs: int, reduction_factor: float, max_epochs: int) -> list[int]:
    """Return the rungs of ASHA: the first epochs at or after grace_epochs x reduction_factor^k, below max_epochs."""
    found, level = [], float(grace_epochs)
    while math.ceil(level) < max_epochs:
        found.append(math.ceil(level))
        level *= reduction_factor
    return list(dict.fromkeys(found))


def _left(levels: Sequence[int], factor: float, epochs: int) -> float:
    """Return the expected number of epochs that a trial of `epochs` epochs runs."""
    bounds = [0.0, *(rung for rung in levels if rung < epochs), float(epochs)]
    return sum((end - begin) / factor**rung for rung, (begin, end) in enumerate(itertools.pairwise(bounds)))


def _bracket_epochs(alive: int, rounds: Sequence[tuple[int, int]], longest: int) -> int:
    """Return the total epochs of a bracket's trials. rounds: each milestone with the number of trials that continue."""
    spent, before = 0, 0
    for milestone, continuing in rounds:
        spent += alive * (milestone - before)
        alive, before = min(alive, continuing), milestone
    return spent + alive * (longest - before)


def _cache_line(sizes: CacheSizes) -> str:
    return (
        f"a cache (--cache, --cache-gib) of all images, which the trials of a node share: {sizes.jpeg / GIB:.2f} GiB as "
        f"jpeg, {sizes.yuv420 / GIB:.2f} GiB as yuv420; `landmark train --dry-run` measures the benefit"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
