"""Schedulers: which trials end before their last epoch, and the budget that ends them all."""

import time
from typing import Any

from ray.tune import Stopper
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from landmark.config import BudgetConfig, SchedulerConfig, UserError

TIME = "epoch"
"""What schedulers count: ours goes on in a restored trial, where Ray Tune's training_iteration starts anew."""


def build_scheduler(config: SchedulerConfig, max_epochs: int) -> TrialScheduler:
    """Return Ray Tune's scheduler; the metric and its direction are set by ray.tune.TuneConfig.

    `max_epochs` is the greatest number of epochs of any trial. asha decides at once; hyperband pauses
    trials until their bracket is complete, median_stopping while too few others have come as far.
    """
    if config.name in ("asha", "median_stopping") and config.grace_epochs > max_epochs:
        raise UserError(
            f"scheduler.grace_epochs is {config.grace_epochs}, but the longest trial has {max_epochs} epochs; lower it"
        )
    if config.name == "asha":
        return AsyncHyperBandScheduler(
            time_attr=TIME,
            max_t=max_epochs,
            grace_period=config.grace_epochs,
            reduction_factor=config.reduction_factor,
        )
    if config.name == "hyperband":
        return HyperBandScheduler(time_attr=TIME, max_t=max_epochs, reduction_factor=config.reduction_factor)
    if config.name == "median_stopping":
        return MedianStoppingRule(
            time_attr=TIME, grace_period=config.grace_epochs, min_samples_required=config.min_trials
        )
    return FIFOScheduler()


class BudgetStopper(Stopper):
    """Ends the study when its epochs or its wall time are spent."""

    def __init__(self, config: BudgetConfig) -> None:
        self.config = config
        self.epochs: set[tuple[str, int]] = set()
        self.deadline = None if config.seconds is None else time.time() + config.seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Count a trial's epoch; no single trial is ended here."""
        if result["epoch"] > 0:
            self.epochs.add((trial_id, int(result["epoch"])))
        return False

    def stop_all(self) -> bool:
        """Return whether the budget is spent."""
        spent = self.config.epochs is not None and len(self.epochs) >= self.config.epochs
        return spent or (self.deadline is not None and time.time() >= self.deadline)
