"""Config of a search space: what differs between trials, what they share, when they end early."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class SchedulerConfig:
    """Which trials end before their last epoch. Every scheduler counts a trial's own epochs."""

    name: Literal["none", "asha", "hyperband", "median_stopping", "pbt"] = "none"
    """none; asha: at each rung, trials below the best 1/reduction_factor end (Li et al. 2020); hyperband: the same in
    brackets that wait for each other, trials pause meanwhile (Li et al. 2018); median_stopping: trials below the median
    of the others' means end (Golovin et al. 2017); pbt: the worst go on with the best's weights and changed settings
    (Jaderberg et al. 2017)."""
    grace_epochs: int = 1
    """asha, hyperband, median_stopping: epochs that every trial gets."""
    reduction_factor: float = 3.0
    """asha, hyperband: one of so many trials goes on at a rung, for so many times the epochs."""
    brackets: int | None = None
    """hyperband: kinds of brackets, from the one that gives the fewest epochs to the most trials; empty: all that the epochs
    allow; 1: successive halving."""
    min_trials: int = 3
    """median_stopping: other trials that a median needs."""
    interval_epochs: int = 2
    """pbt: epochs between two comparisons."""
    quantile: float = 0.25
    """pbt: share of the trials that take over, and of those they take from."""
    resample: float = 0.25
    """pbt: probability that a changed setting is drawn anew in place of moved to a value nearby."""

    def __post_init__(self) -> None:
        require(self.grace_epochs >= 1, f"scheduler.grace_epochs is {self.grace_epochs}; expected 1 or more")
        require(self.reduction_factor > 1, f"scheduler.reduction_factor is {self.reduction_factor}; expected above 1")
        require(
            self.brackets is None or self.brackets >= 1, f"scheduler.brackets is {self.brackets}; expected 1 or more"
        )
        require(self.interval_epochs >= 1, f"scheduler.interval_epochs is {self.interval_epochs}; expected 1 or more")
        require(0 < self.quantile <= 0.5, f"scheduler.quantile is {self.quantile}; expected above 0, up to 0.5")
        require(0 <= self.resample <= 1, f"scheduler.resample is {self.resample}; expected 0 to 1")
        require(self.min_trials >= 1, f"scheduler.min_trials is {self.min_trials}; expected 1 or more")


Objective = Literal["val_top1", "val_top5", "val_macro_recall", "val_loss", "images_per_s", "parameters"]


@dataclass(kw_only=True, frozen=True)
class SearcherConfig:
    """Where the trials of a space with parameters come from."""

    name: Literal["listed", "optuna"] = "listed"
    """listed: the grid crossed with `samples` random draws, all known before the first trial starts; optuna: `samples` trials, each
    proposed out of what those before it came to, by tree-structured Parzen estimators (Bergstra et al. 2011; needs the extra optuna)."""
    startup: int = 10
    """optuna: trials that have to end before proposals follow results; until then points are random."""
    objectives: list[Objective] = field(default_factory=list)
    """optuna: the metric, and what is sought beside it: images_per_s (more is better), parameters (the network's weights; fewer are
    better); empty: the metric alone."""

    def __post_init__(self) -> None:
        require(self.startup >= 1, f"searcher.startup is {self.startup}; expected 1 or more")
        repeated = sorted({name for name in self.objectives if self.objectives.count(name) > 1})
        require(not repeated, f"searcher.objectives names {', '.join(repeated)} twice; leave one out")
        require(
            self.name == "optuna" or not self.objectives,
            f"searcher.objectives needs a searcher that proposes; set searcher.name to optuna, or remove {self.objectives}",
        )


@dataclass(kw_only=True, frozen=True)
class BudgetConfig:
    """What a study may spend; at the limit all trials end and the study is concluded with what there is."""

    trials: int | None = None
    """Trials at most: the first ones."""
    epochs: int | None = None
    """Epochs of all trials together."""
    seconds: float | None = None
    """Wall time, of all processes that drive the study."""
    target: float | None = None
    """Value of the metric at which the study has found what it looks for."""

    def __post_init__(self) -> None:
        for name in ("trials", "epochs", "seconds"):
            value = getattr(self, name)
            require(value is None or value > 0, f"budget.{name} is {value}; expected above 0")
        require(
            self.target is None or math.isfinite(self.target),
            f"budget.target is {self.target}; expected a finite number",
        )


@dataclass(kw_only=True, frozen=True)
class SpaceConfig:
    """A search space as its YAML file says it; `landmark.search.space` turns it into trials."""

    metric: Literal["val_top1", "val_top5", "val_macro_recall", "val_loss"] = "val_top1"
    """Metric by which trials are compared, and each trial's `monitor`; val_loss is minimised."""
    base: str | None = None
    """Recipe that all trials start from: deck, modern, finetune or a YAML file; `--recipe` names another; empty: the defaults."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """What every trial has in common, as nested keys over those of `base`; the command line overrides it."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Dotted recipe key, or `dataset` -> a domain: {grid: […]}, {choice: […]}, {int: [low, high]}, {uniform: [low, high]} or
    {loguniform: [low, high]}; or cases by another searched key: {by: KEY, VALUE: a domain or a plain value, …, default: …}. A trial
    without a case leaves the recipe's value."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Instead of parameters: the runs one by one, dotted recipe keys with a value each; also `name` and `dataset`."""
    samples: int = 1
    """Draws of the random parameters; the grid is crossed with each. searcher optuna: the number of trials."""
    seed: int = 0
    """Seed of the draws and proposals."""
    searcher: SearcherConfig = field(default_factory=SearcherConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        require(self.samples >= 1, f"samples is {self.samples}; expected 1 or more")
        require(
            not (self.parameters and self.points),
            "both 'parameters' and 'points' are given; keep one: parameters to combine, or points to list",
        )
        require(
            bool(self.parameters or self.points),
            "neither 'parameters' nor 'points' is given; add parameters to combine, or points to list",
        )
        self._check_searcher()

    def _check_searcher(self) -> None:
        if self.searcher.name == "listed":
            return
        name = self.searcher.name
        require(not self.points, f"searcher.name is {name}, but 'points' lists the runs; remove one of them")
        require(self.samples > 1, f"samples is {self.samples}; with searcher {name} it is the number of trials: set it")
        judged = [objective for objective in self.searcher.objectives if objective.startswith("val_")]
        require(
            not self.searcher.objectives or judged == [self.metric],
            f"searcher.objectives is {self.searcher.objectives}; expected the metric, {self.metric}, and besides it "
            "images_per_s or parameters",
        )

    def mode(self) -> Literal["max", "min"]:
        """Return whether the metric is better when greater or when smaller."""
        return "min" if self.metric == "val_loss" else "max"
