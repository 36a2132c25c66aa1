"""Config of a search space: the parameters of the trials, their common options, and their early stopping."""

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from landmark.config.errors import nearest, require

SCHEDULERS = ("none", "asha", "hyperband", "median_stopping", "pbt")
SEARCHERS = ("listed", "optuna")


def require_kind(group: str, name: str, names: tuple[str, ...], options: dict[str, Any]) -> None:
    """Check a name of a scheduler or searcher: one of `names`, or MODULE:CLASS, which may have options."""
    named = name in names
    require(
        named or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None,
        f"{group}.name is {name!r}; {nearest(name, names)} (a class of Ray Tune is MODULE:CLASS)",
    )
    require(
        not (named and options),
        f"{group}.options is set, but {group}.name is {name}; remove it, or set {group}.name to MODULE:CLASS",
    )


@dataclass(kw_only=True, frozen=True)
class SchedulerConfig:
    """Early stopping of trials. Every scheduler counts a trial's own epochs."""

    name: str = "none"
    """Early-stopping scheduler: none, asha, hyperband, median_stopping, pbt, or MODULE:CLASS. none runs all trials to the
    end. asha ends trials below the best 1/reduction_factor at each rung (Li et al. 2020). hyperband does the same in
    brackets whose trials pause and wait for each other (Li et al. 2018). median_stopping ends trials below the median of
    the other trials' means (Golovin et al. 2017). With pbt, the worst trials continue with the best trials' weights and
    changed options (Jaderberg et al. 2017). MODULE:CLASS is a scheduler of Ray Tune that stops or pauses trials, such as
    ray.tune.schedulers:AsyncHyperBandScheduler."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of MODULE:CLASS. landmark sets metric, mode and time_attr, and max_t unless it is given.
    [default: none]"""
    grace_epochs: int = 1
    """Minimum number of epochs per trial (asha, hyperband, median_stopping)."""
    reduction_factor: float = 3.0
    """Reduction factor (asha, hyperband). At each rung, 1/reduction_factor of the trials continue, for reduction_factor
    times as many epochs."""
    brackets: int | None = None
    """Number of kinds of brackets (hyperband). The first kind gives the fewest epochs to the most trials. 1 is
    successive halving. [default: all that the epochs allow]"""
    min_trials: int = 3
    """Minimum number of other trials for a median (median_stopping)."""
    interval_epochs: int = 2
    """Epochs between two comparisons (pbt)."""
    quantile: float = 0.25
    """Fraction of trials that are replaced, and of those that replace them (pbt)."""
    resample: float = 0.25
    """Probability of sampling a changed option again (pbt). Otherwise, it moves to a nearby value."""

    def __post_init__(self) -> None:
        require_kind("scheduler", self.name, SCHEDULERS, self.options)
        require(self.grace_epochs >= 1, f"scheduler.grace_epochs is {self.grace_epochs}; expected 1 or more")
        require(self.reduction_factor > 1, f"scheduler.reduction_factor is {self.reduction_factor}; expected above 1")
        require(
            self.brackets is None or self.brackets >= 1, f"scheduler.brackets is {self.brackets}; expected 1 or more"
        )
        require(self.interval_epochs >= 1, f"scheduler.interval_epochs is {self.interval_epochs}; expected 1 or more")
        require(0 < self.quantile <= 0.5, f"scheduler.quantile is {self.quantile}; expected above 0, up to 0.5")
        require(0 <= self.resample <= 1, f"scheduler.resample is {self.resample}; expected 0 to 1")
        require(self.min_trials >= 1, f"scheduler.min_trials is {self.min_trials}; expected 1 or more")
        own = {item.name: item.default for item in fields(self) if item.name not in ("name", "options")}
        changed = [key for key, default in own.items() if getattr(self, key) != default]
        require(
            self.name in SCHEDULERS or not changed,
            f"scheduler.{', scheduler.'.join(changed)} is set, but scheduler.name is {self.name}; remove it, and use the "
            "class's arguments in scheduler.options",
        )


Objective = Literal["val_top1", "val_top5", "val_macro_recall", "val_loss", "images_per_s", "parameters"]


@dataclass(kw_only=True, frozen=True)
class SearcherConfig:
    """How the trials of a space with parameters are chosen."""

    name: str = "listed"
    """Searcher: listed, optuna, or MODULE:CLASS. listed is the grid crossed with `samples` random samples, all known
    before the first trial starts. optuna proposes `samples` trials from the results so far, by tree-structured Parzen
    estimators (Bergstra et al. 2011). It requires the extra optuna. MODULE:CLASS is a subclass of ray.tune.search.Searcher,
    such as ray.tune.search.bayesopt:BayesOptSearch. It proposes `samples` trials."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of MODULE:CLASS. landmark sets metric, mode and space. [default: none]"""
    startup: int = 10
    """Number of trials that end before proposals follow results (optuna). Until then, points are random."""
    objectives: list[Objective] = field(default_factory=list)
    """Metric and further objectives (optuna). For images_per_s, higher is better. For parameters, the number of the
    model's weights, lower is better. [default: only the metric]"""

    def __post_init__(self) -> None:
        require_kind("searcher", self.name, SEARCHERS, self.options)
        require(self.startup >= 1, f"searcher.startup is {self.startup}; expected 1 or more")
        repeated = sorted({name for name in self.objectives if self.objectives.count(name) > 1})
        require(not repeated, f"searcher.objectives contains {', '.join(repeated)} twice; remove one")
        require(
            self.name == "optuna" or not self.objectives,
            f"searcher.objectives requires the searcher optuna; set searcher.name to optuna, or remove {self.objectives}",
        )
        require(
            self.name in SEARCHERS or self.startup == 10,
            f"searcher.startup is set, but searcher.name is {self.name}; remove it",
        )


@dataclass(kw_only=True, frozen=True)
class BudgetConfig:
    """Limits of a study. At a limit, all trials end, and the study concludes with the results so far."""

    trials: int | None = None
    """Maximum number of trials. The first ones run. [default: the space's, else no limit]"""
    epochs: int | None = None
    """Maximum number of epochs, over all trials together. [default: the space's, else no limit]"""
    seconds: float | None = None
    """Maximum wall time, seconds. It counts all processes that drive the study. [default: the space's, else no
    limit]"""
    target: float | None = None
    """Value of the metric at which the study ends. [default: the space's, else none]"""

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
    """A search space, as in its YAML file. `landmark.search.spaces.space` generates the trials."""

    metric: Literal["val_top1", "val_top5", "val_macro_recall", "val_loss"] = "val_top1"
    """Metric that compares trials, and `monitor` of each trial. For val_loss, lower is better."""
    base: str | None = None
    """Recipe that all trials start from, reference, modern, finetune or a YAML file. `--recipe` replaces it. [default: the
    defaults of all options]"""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Options that all trials have in common, as nested keys. They override `base`, and the command line overrides
    them."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Searched parameters, from a dotted recipe key or `dataset` to a domain. Domains are {grid: […]}, {choice: […]},
    {int: [low, high]}, {uniform: [low, high]} and {loguniform: [low, high]}. A domain can depend on another searched
    key, as in {by: KEY, VALUE: a domain or a plain value, …, default: …}. If no case applies, the trial has the
    recipe's value."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """List of trials, instead of parameters. Each has values for dotted recipe keys, and can have `name` and
    `dataset`."""
    samples: int = 1
    """Number of random samples of the parameters, each crossed with the grid. With searcher optuna, it is the number of
    trials."""
    seed: int = 0
    """Seed of the random samples and proposals."""
    searcher: SearcherConfig = field(default_factory=SearcherConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        require(self.samples >= 1, f"samples is {self.samples}; expected 1 or more")
        require(
            not (self.parameters and self.points),
            "both 'parameters' and 'points' are set; keep 'parameters' to combine values, or 'points' to list trials",
        )
        require(
            bool(self.parameters or self.points),
            "neither 'parameters' nor 'points' is set; add 'parameters' to combine values, or 'points' to list trials",
        )
        self._check_searcher()

    def _check_searcher(self) -> None:
        if self.searcher.name == "listed":
            return
        name = self.searcher.name
        require(not self.points, f"searcher.name is {name}, but 'points' lists all trials; remove one of the two")
        require(
            self.samples > 1,
            f"samples is {self.samples}; searcher {name} requires it as the number of trials; set it above 1",
        )
        judged = [objective for objective in self.searcher.objectives if objective.startswith("val_")]
        require(
            not self.searcher.objectives or judged == [self.metric],
            f"searcher.objectives is {self.searcher.objectives}; expected the metric, {self.metric}, and in addition "
            "images_per_s or parameters",
        )

    def mode(self) -> Literal["max", "min"]:
        """Return whether larger or smaller values of the metric are better."""
        return "min" if self.metric == "val_loss" else "max"
