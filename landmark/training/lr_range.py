"""`landmark train --lr-range-test`: trains with a rising learning rate, and suggests the peak learning rate (Smith 2017)."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from landmark.config import TrainConfig, UserError
from landmark.table import aligned
from landmark.training.compute.device_prefetch import DeviceBatch
from landmark.training.loop.state import RunState
from landmark.training.measuring import measured_training

STEPS = 120
"""Steps of the test."""
RANGE = (1e-7, 10.0)
"""First and last learning rate."""
SMOOTHING = 0.9
"""Decay per step of the averaged loss."""
DIVERGED = 4.0
"""The test ends when the averaged loss is this many times its minimum."""
WINDOW = 10
"""Steps over which the slope of the averaged loss is measured."""
SHOWN = 12
"""Rows of the printed table."""


class _Ramp:
    """Schedule whose learning rate rises exponentially from one step to the next."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def set_lr(self, step: float, batch_size: int) -> float:
        """Set the learning rate of a step, counted from 0, and return it."""
        low, high = (math.log(rate) for rate in RANGE)
        lr = math.exp(low + (high - low) * step / (STEPS - 1))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr


def lr_range_test(config: TrainConfig) -> dict[str, Any]:
    """Train some steps with a rising learning rate, in this process. Stores nothing but the features of a probe.

    Training starts as the run does, at its weights and at its probe. Returns the suggestion as lr, and for each step the lr
    and the averaged loss as rows. The suggestion is optimizer.lr: with optimizer.base_batch_size, that of a batch of this
    size. Raises UserError if the loss is not finite from the first step on.
    """
    with measured_training(config, at_probe=True) as (run, _, batches):
        rows = list(_losses(run, batches))
    return {"lr": _suggestion(config, rows), "rows": rows}


def _losses(run: RunState, batches: Iterator[DeviceBatch]) -> Iterator[tuple[float, float]]:
    """Yield the learning rate and the averaged loss of each step, until the loss diverges."""
    ramp, average, minimum = _Ramp(run.step.optimizer), 0.0, math.inf
    _, batch_size = run.recipe.shape(run.recipe.epochs)
    for step, batch in enumerate(itertools.islice(batches, STEPS)):
        run.reseed()
        lr = run.step.run(batch, ramp, step, batch_size)  # type: ignore[arg-type]
        run.position.step += 1
        try:
            totals = run.step.take_totals()
        except UserError:  # the loss or the weights are not finite
            return
        if not totals.rows:
            return
        average = SMOOTHING * average + (1 - SMOOTHING) * totals.loss / totals.rows
        loss = average / (1 - SMOOTHING ** (step + 1))
        yield lr, loss
        minimum = min(minimum, loss)
        if loss > DIVERGED * minimum:
            return


def _suggestion(config: TrainConfig, rows: list[tuple[float, float]]) -> float:
    """Return the suggested optimizer.lr, with two digits: where the loss falls fastest, as in Lightning's finder."""
    if len(rows) <= WINDOW:
        raise UserError(
            f"the loss diverges within {len(rows)} steps at learning rates up to {rows[-1][0] if rows else RANGE[0]:.2g}; "
            "check model.weights, or set compute.amp to off"
        )
    lowest = min(range(WINDOW, len(rows)), key=lambda step: rows[step][1])
    slopes = {step: rows[step][1] - rows[step - WINDOW][1] for step in range(WINDOW, lowest + 1)}
    best, _ = rows[min(slopes, key=lambda step: slopes[step]) - WINDOW // 2]
    _, batch_size = config.shape(config.epochs)
    factor = config.optimizer.peak_lr(batch_size) / config.optimizer.peak_lr(
        config.optimizer.base_batch_size or batch_size
    )
    return float(f"{best / factor:.2g}")


def lr_range_text(config: TrainConfig, found: dict[str, Any]) -> str:
    """Return what `lr_range_test` found as text."""
    rows = found["rows"]
    every = max(1, len(rows) // SHOWN)
    table = [("lr", "loss, averaged"), *((f"{lr:.2g}", f"{loss:.3f}") for lr, loss in rows[every - 1 :: every])]
    lowest, _ = min(rows, key=lambda row: row[1])
    now = config.optimizer.peak_lr(config.optimizer.base_batch_size or config.shape(config.epochs)[1])
    return "\n".join(
        [
            aligned(table),
            f"lowest loss at {lowest:.2g}; suggestion, where it falls fastest: --lr {found['lr']:g}",
            f"this run has --lr {now:g}",
        ]
    )
