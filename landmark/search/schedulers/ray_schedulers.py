"""Ray Tune's schedulers that a study can use: by name, or by import path with options."""

from typing import Any

import numpy as np
import ray
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
    TrialScheduler,
)

from landmark.config import SchedulerConfig, UserError
from landmark.search.import_path import create, load_class
from landmark.search.schedulers.logical_trials import LogicalTrial

TIME = "epoch"
"""Metric by which schedulers measure time. Ray Tune's own `training_iteration` starts again at 1 in a restored trial."""
UNSUPPORTED = (PopulationBasedTraining, PopulationBasedTrainingReplay, ResourceChangingScheduler)
"""Schedulers that change running trials through Ray Tune's own checkpoints; PB2 is a subclass of the first."""
RESERVED = {"metric": "the space's metric", "mode": "the space's metric", "time_attr": "landmark's epochs"}
"""Argument of a scheduler -> the setting that determines it."""


def ray_scheduler(config: SchedulerConfig, metric: str, mode: str, max_epochs: int) -> TrialScheduler:
    """Return the scheduler of a config other than none and pbt.

    max_epochs: maximum epochs of any trial. Raises UserError for a wrong import path or wrong options.
    """
    common = {"time_attr": TIME, "metric": metric, "mode": mode}
    if config.name == "asha":
        return AsyncHyperBandScheduler(
            **common, max_t=max_epochs, grace_period=config.grace_epochs, reduction_factor=config.reduction_factor
        )
    if config.name == "hyperband":
        return HyperBand(config, metric, mode, max_epochs)
    if config.name == "median_stopping":
        return MedianStoppingRule(**common, grace_period=config.grace_epochs, min_samples_required=config.min_trials)
    kind = load_class(config.name, TrialScheduler, "scheduler.name")
    if issubclass(kind, UNSUPPORTED):
        raise UserError(
            f"scheduler.name is {config.name}, which changes running trials through Ray Tune's own checkpoints; expected a "
            "scheduler that stops or pauses trials; landmark's own population-based training is scheduler pbt"
        )
    defaults = {"time_attr": TIME, "max_t": max_epochs}
    scheduler = create(kind, config.options, "scheduler.options", RESERVED, defaults)
    scheduler.set_search_properties(metric, mode)
    return scheduler


def identity(scheduler: TrialScheduler) -> str:
    """Return the class of a scheduler and the version of Ray, on which its decisions depend."""
    return f"{type(scheduler).__module__}:{type(scheduler).__qualname__}, Ray {ray.__version__}"


class HyperBand(HyperBandScheduler):
    """Ray Tune's HyperBandScheduler with the options of landmark, and without its deadlock.

    The differences:

    - The bracket with the most trials and the fewest epochs is filled first, as in Li et al. 2018 and HyperBandForBOHB. The
      options `grace_epochs` and `brackets` limit the kinds of brackets.
    - Of equal trials, the one with more epochs continues.
    - After the first halving of a bracket, HyperBandScheduler ignores trials that fail or end, and the other trials of the
      bracket wait for them for ever. Here, they continue.
    - The survivors of a bracket run to their last epoch, not only to the bracket's last milestone.
    """

    def __init__(self, config: SchedulerConfig, metric: str, mode: str, max_epochs: int) -> None:
        factor = config.reduction_factor
        super().__init__(TIME, metric, mode, max_t=max_epochs, reduction_factor=factor, stop_last_trials=False)
        deepest = 0
        while config.grace_epochs * factor ** (deepest + 1) <= max_epochs:
            deepest += 1
        self._s_max_1 = deepest + 1
        self._get_r0 = lambda s: max(1, round(max_epochs / factor**s))
        self._kinds = min(config.brackets or self._s_max_1, self._s_max_1)

    on_trial_add = HyperBandForBOHB.on_trial_add

    def _cur_band_filled(self) -> bool:
        return len(self._hyperbands[self._state["band_idx"]]) == self._kinds

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        if not bracket.current_trials():
            return TrialScheduler.PAUSE
        # The sort of the trials by their metric is stable, and its last trials continue.
        order = sorted(bracket._live_trials.items(), key=lambda item: (item[0].epochs, -item[0].number))
        bracket._live_trials = dict(order)
        left = bracket._halves
        action = super()._process_bracket(tune_controller, bracket)
        bracket.is_being_processed = False
        if bracket._halves < left and bracket.cur_iter_done():  # the best have reached the next milestone, too
            later = self._process_bracket(tune_controller, bracket)
            return action if action == TrialScheduler.STOP else later
        return action


def bracket_sizes(config: SchedulerConfig, max_epochs: int, trials: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return, per bracket of HyperBand, its number of trials, and each milestone with the number of trials that continue."""
    scheduler = HyperBand(config, "val_top1", "max", max_epochs)
    for number in range(1, trials + 1):
        scheduler.on_trial_add(None, LogicalTrial(number))
    found = []
    for bracket in (bracket for band in scheduler._hyperbands for bracket in band):
        size, milestone, rounds = bracket._n, bracket._r, []
        for _ in range(bracket._halves):
            size = int(np.ceil(size / bracket._eta))
            rounds.append((milestone, size))
            milestone = int(min(milestone * bracket._eta, max_epochs))
        found.append((len(bracket.current_trials()), rounds))
    return found
