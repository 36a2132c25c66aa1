"""`landmark train`: trains one model."""

import dataclasses
from typing import Any

from landmark.config import TrainConfig
from landmark.models import with_hub_model
from landmark.progress import clock
from landmark.training.dry_run import dry_run_text
from landmark.training.headroom import headroom, headroom_text
from landmark.training.lr_range import lr_range_test, lr_range_text
from landmark.training.run import RunResult, run_training


def train(config: TrainConfig) -> RunResult | dict[str, Any]:
    """Train one model, and print its metrics and location. A dry run, `--headroom` and `--lr-range-test` only print what they found."""
    config = dataclasses.replace(config, model=with_hub_model(config.model))
    if config.dry_run:
        print(dry_run_text(config))
        return {}
    if config.headroom:
        found = headroom(config)
        print(headroom_text(config, found))
        return found
    if config.lr_range_test:
        found = lr_range_test(config)
        print(lr_range_text(config, found))
        return found
    result = run_training(config)
    best = result.best
    early = " (stopped early)" if result.stopped_early else ""
    which = f"{best['epoch']:.0f}" if best["epoch"] else "0 (the probe)"
    figures = f"best epoch {which}: val top-1 {best['val_top1']:.2%}, top-5 {best['val_top5']:.2%}"
    if result.probe and best["epoch"]:
        figures += f"; the probe had {result.probe['val_top1']:.2%}"
    if result.finished_before:
        print(f"already finished, nothing to train; saved metrics: {result.epochs_run} epochs{early}; {figures}")
    else:
        print(f"{result.epochs_run} epochs{early} in {clock(result.seconds)}; {figures}")
    print(f"run: {result.run}  next: landmark evaluate {result.run}")
    return result
