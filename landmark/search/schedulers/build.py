"""Builds the scheduler of a study from its config."""

from landmark.config import SchedulerConfig, UserError
from landmark.search.schedulers.base import Scheduler
from landmark.search.schedulers.journal_scheduler import JournalScheduler
from landmark.search.schedulers.population import PopulationBased, TakeOver
from landmark.search.schedulers.ray_schedulers import ray_scheduler
from landmark.search.state.state import StudyState


def build_scheduler(
    record: StudyState,
    config: SchedulerConfig,
    metric: str,
    mode: str,
    *,
    max_epochs: int,
    seed: int,
    exploit: TakeOver,
) -> Scheduler:
    """Return the scheduler of a config.

    max_epochs: maximum epochs of any trial. exploit: plans an exploit of population-based training. Raises UserError as
    `check_scheduler` does.
    """
    check_scheduler(config, metric, mode, max_epochs)
    common = (record, config, metric, mode)
    if config.name == "none":
        return Scheduler(*common)
    if config.name == "pbt":
        return PopulationBased(*common, exploit=exploit, seed=seed)
    return JournalScheduler(*common, scheduler=ray_scheduler(config, metric, mode, max_epochs), seed=seed)


def check_scheduler(config: SchedulerConfig, metric: str, mode: str, max_epochs: int) -> None:
    """Raise UserError if every trial ends before the first decision, or for a wrong import path or wrong options."""
    for key in ("grace_epochs", "interval_epochs"):
        used = ("pbt",) if key == "interval_epochs" else ("asha", "hyperband", "median_stopping")
        if config.name in used and getattr(config, key) > max_epochs:
            raise UserError(
                f"scheduler.{key} is {getattr(config, key)}, but the longest trial has {max_epochs} epochs; lower it"
            )
    if config.name not in ("none", "pbt"):
        ray_scheduler(config, metric, mode, max_epochs)
