"""`landmark train --headroom`: the rate of training, and what it would be with a loader without cost."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch

from landmark.config import TrainConfig
from landmark.data.loading.bottleneck import COMPUTE_LIMIT, DATA_WAIT, STAGES, bottleneck, stage_metric
from landmark.data.loading.loader import Loader
from landmark.table import aligned
from landmark.training.compute.device_prefetch import DeviceBatch
from landmark.training.distributed.local import default_device
from landmark.training.loop.state import RunState
from landmark.training.loop.validation import timed
from landmark.training.measuring import measured_training

ROUNDS = 3
ROUND_S = 8.0
"""Seconds per round and loader."""
WARM_UP_STEPS = 5
KEPT_BATCHES = 4
"""Batches in memory that the loader without cost repeats."""
REMEDIES = {
    "storage": "add --cache FOLDER --cache-gib N, or copy the dataset closer",
    "decoding": "add --cache FOLDER --cache-gib N --cache-format yuv420 (see --dry-run), or use more CPUs per worker",
    "transfer": "decode in the workers (loader.decode worker), or use more CPUs per worker",
}


def headroom(config: TrainConfig, round_s: float = ROUND_S) -> dict[str, Any]:
    """Train for about a minute with the dataset's loader and with batches in memory, in turns. Stores nothing.

    The images have the size of the last epoch. Returns images_per_s and images_per_s_without_loader, medians of
    ROUNDS, headroom (their ratio), DATA_WAIT, its parts, and the bottleneck. Raises UserError.
    """
    with measured_training(config) as (run, train, batches):
        return _measured(_Steps(run), batches, train, round_s)


class _Steps:
    """Steps of training that do not move along the schedule."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        _, self.batch_size = run.recipe.shape(run.recipe.epochs)
        self.at = run.at(run.steps())

    def rate(self, batches: Iterator[DeviceBatch], limit_s: float) -> float:
        """Train for a time. Returns images/s."""
        device = self.run.session.device
        start, images = _now(device), 0
        for batch in batches:
            self.run.step.run(batch, self.run.schedule, self.at, self.batch_size)
            images += len(batch.labels)
            if time.perf_counter() - start >= limit_s:
                break
        return images / (_now(device) - start)


def _measured(steps: _Steps, source: Iterator[DeviceBatch], train: Loader, round_s: float) -> dict[str, Any]:
    kept = list(itertools.islice(source, KEPT_BATCHES))
    for batch in itertools.islice(itertools.cycle(kept), WARM_UP_STEPS):
        steps.rate(iter([batch]), 0.0)
    rates: tuple[list[float], list[float]] = [], []
    wait, seconds = [0.0], 0.0
    before = train.stage_seconds()
    for _ in range(ROUNDS):
        # The batches that were prepared during the other measurement are not counted.
        for batch in itertools.islice(source, 2 + train.config.prefetch_batches):
            steps.rate(iter([batch]), 0.0)
        start = time.perf_counter()
        rates[0].append(steps.rate(timed(source, wait), round_s))
        seconds += time.perf_counter() - start
        rates[1].append(steps.rate(itertools.cycle(kept), round_s))
    waited = train.stage_seconds().since(before).within(wait[0])
    own, free = (sorted(values)[ROUNDS // 2] for values in rates)
    parts = {stage_metric(stage): value / seconds for stage, value in zip(STAGES, waited.values(), strict=True)}
    metrics: dict[str, Any] = {
        "images_per_s": own,
        "images_per_s_without_loader": free,
        "headroom": free / own,
        DATA_WAIT: sum(parts.values()),
        **parts,
    }
    return {**metrics, "bottleneck": bottleneck(metrics)}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def headroom_text(config: TrainConfig, found: dict[str, Any]) -> str:
    """Return what `headroom` found as text."""
    size, batch_size = config.shape(config.epochs)
    device = default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rows = [
        ("loader", "images/s", "waits for data"),
        ("of this dataset", f"{found['images_per_s']:,.0f}", f"{found[DATA_WAIT]:.0%}"),
        ("without cost", f"{found['images_per_s_without_loader']:,.0f}", "-"),
    ]
    stage = found["bottleneck"]
    remedy = f"; {REMEDIES[stage]}" if stage in REMEDIES else ""
    return "\n".join(
        [
            f"{config.model.backbone} on one {name}, {batch_size} images of {size} x {size} per step",
            aligned(rows),
            f"headroom: a loader without cost would be {found['headroom']:.2f} times as fast",
            f"bottleneck: {stage}{remedy}"
            if found[DATA_WAIT] >= COMPUTE_LIMIT
            else "bottleneck: compute; a faster loader does not help",
        ]
    )
