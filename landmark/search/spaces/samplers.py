"""Sources of a study's trials: a fixed list, or proposals that depend on earlier results."""

import itertools
import json
import math
import random
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from landmark.config import Recipe, UserError
from landmark.config.extras import install_command
from landmark.search.spaces import domains
from landmark.search.spaces.domains import Domain, Params
from landmark.search.spaces.ray_sampler import RaySampler
from landmark.search.spaces.space import Space, TrialSpec

MAX_TRIES = 16
"""Maximum attempts per trial to get a new and valid point from Optuna; then points are sampled at random."""
MAX_DRAWS = 64
"""Maximum attempts per trial to sample a new and valid point at random; then points are enumerated."""
MAX_ENUMERATED = 20_000
"""Maximum number of points to enumerate, in addition to the known ones, before the space counts as exhausted."""
MAXIMIZED = ("val_top1", "val_top5", "val_macro_recall", "images_per_s")


class Sampler(Protocol):
    """A source that yields the trials of a study one by one."""

    total: int
    """Maximum number of trials."""

    def next(self) -> TrialSpec | None:
        """Return the next trial; None if there are no more."""

    def restore(self, plan: TrialSpec) -> None:
        """Restore a trial that an earlier process got from `next`; call this in order, before `next`."""

    def tell(self, plan: TrialSpec, metrics: Mapping[str, float] | None) -> None:
        """Record the result of a trial. A failed trial that ran again has two.

        metrics: the space's metric, images_per_s and parameters (number of weights) of its best epoch; None if it failed.
        """


def build_sampler(space: Space, recipe: Recipe, limit: int | None = None) -> Sampler:
    """Return the trials of a space over a common recipe, at most `limit`.

    Checks each value, and each model with its image sizes, before a trial starts. Raises UserError for the first mistake.
    """
    if space.config.searcher.name == "listed":
        return ListSampler(space, recipe, limit)
    return (OptunaSampler if space.config.searcher.name == "optuna" else RaySampler)(space, recipe, limit)


class ListSampler:
    """Trials that are known before the first one starts: listed points, or a grid with random samples."""

    def __init__(self, space: Space, recipe: Recipe, limit: int | None = None) -> None:
        self.plans = space.trials(recipe)
        """All trials of the space, including those beyond the limit: the full grid with which a study is compared."""
        space.check_networks(self.plans)
        self.total = min(len(self.plans), limit or len(self.plans))
        self._given = 0

    def next(self) -> TrialSpec | None:
        """Return the next trial; None if there are no more."""
        if self._given >= self.total:
            return None
        self._given += 1
        return self.plans[self._given - 1]

    def restore(self, plan: TrialSpec) -> None:
        """Restore a trial: `next` continues after it."""
        self._given = max(self._given, plan.number)

    def tell(self, plan: TrialSpec, metrics: Mapping[str, float] | None) -> None:
        """Do nothing: a list does not depend on results."""


class OptunaSampler:
    """Trials that Optuna proposes with tree-structured Parzen estimators, from earlier results.

    The estimator is multivariate (Falkner et al. 2018), with a group per set of cases. Several objectives use Pareto ranks
    (Ozaki et al. 2020). Running and failed trials count as poor, so that proposals avoid their neighbourhood. A trial that
    stopped early counts with its best result. A proposal depends only on the seed, its number and the results so far, not
    on a generator's state. Needs the extra optuna.
    """

    def __init__(self, space: Space, recipe: Recipe, limit: int | None = None) -> None:
        self._optuna = _import_optuna()
        self._space = space
        self._recipe = recipe
        space.check(recipe)
        space.check_networks(space.networks(recipe))
        self.total = min(space.total, limit or space.total)
        self._objectives = space.config.searcher.objectives or [space.config.metric]
        self._study = self._optuna.create_study(
            directions=["maximize" if name in MAXIMIZED else "minimize" for name in self._objectives]
        )
        self._numbers: dict[int, int] = {}
        """Our trial number -> Optuna's."""
        self._seen: set[str] = set()
        """Points that were proposed or have no valid recipe."""
        self._used_up = False
        """Whether the space has no further point."""

    def next(self) -> TrialSpec | None:
        """Return the next trial; None if there are no more."""
        if self._used_up or len(self._numbers) >= self.total:
            return None
        number = max(self._numbers, default=0) + 1
        plan = self._proposed(number) or self._drawn(number)
        if plan is None:
            self._used_up = True
        else:
            self.restore(plan)
        return plan

    def restore(self, plan: TrialSpec) -> None:
        """Restore or add a trial; raises UserError if it does not belong to the space."""
        values, distributions = {}, {}
        try:
            for key, value in plan.point.items():
                domain = self._space.parameters[key].domain(plan.point)
                if domain is None:
                    raise ValueError(f"{key} has no case")
                name, distributions[domain.where] = self._distribution(domain)
                values[name] = domain.values.index(value) if _is_listed(domain) else value
            trial = self._optuna.trial.create_trial(
                state=self._optuna.trial.TrialState.RUNNING, params=values, distributions=distributions
            )
        except (KeyError, ValueError):
            raise UserError(
                f"{self._space.source}: trial {plan.name} is not in this search space; choose another --name for the study"
            ) from None
        self._numbers[plan.number] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(trial)
        self._seen.add(_identity(plan.point))

    def tell(self, plan: TrialSpec, metrics: Mapping[str, float] | None) -> None:
        """Record the result of a trial; a trial with an objective that is not finite counts as failed."""
        values = None if metrics is None else [float(metrics[name]) for name in self._objectives]
        trial = self._study.get_trials(deepcopy=False)[self._numbers[plan.number]]
        if trial.state.is_finished():  # it failed, and ran again
            self.restore(plan)
        if values is None or not all(math.isfinite(value) for value in values):
            # Optuna ignores failed trials; a trial that is pruned before its first report ranks last.
            self._study.tell(self._numbers[plan.number], state=self._optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(self._numbers[plan.number], values)

    def _proposed(self, number: int) -> TrialSpec | None:
        """Return a new and valid trial that Optuna proposes; None after MOST_TRIES attempts."""
        for attempt in range(MAX_TRIES):
            self._study.sampler = self._sampler(number, attempt)
            trial = self._study.ask()
            point = self._point(trial)
            # `restore` adds the trial again, so that a restored study has exactly the same state.
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            if (plan := self._new(number, point)) is not None:
                return plan
        return None

    def _drawn(self, number: int) -> TrialSpec | None:
        """Return a new and valid trial, sampled at random or found by enumeration; None if the space is exhausted."""
        generator = random.Random(f"{self._space.config.seed} {number}")
        sampled_points = (domains.sample_point(self._space.parameters, generator) for _ in range(MAX_DRAWS))
        enumerated_points = itertools.islice(
            domains.enumerated_points(self._space.parameters, generator), MAX_ENUMERATED + len(self._seen)
        )
        points = itertools.chain(sampled_points, enumerated_points)
        return next((plan for point in points if (plan := self._new(number, point)) is not None), None)

    def _new(self, number: int, point: Params) -> TrialSpec | None:
        """Return the trial of a point; None if the point is known already or has no valid recipe."""
        if _identity(point) in self._seen:
            return None
        try:
            return self._space.plan(number, point, self._recipe)
        except UserError:  # each value is valid, but not in this combination
            self._seen.add(_identity(point))
            return None

    def _point(self, trial: Any) -> Params:
        """Return the point that Optuna suggests; keys on which others depend come first."""
        return next(domains.combinations(self._space.parameters, lambda _, domain: [self._suggested(trial, domain)]))

    def _suggested(self, trial: Any, domain: Domain) -> Any:
        name, distribution = self._distribution(domain)
        if _is_listed(domain):
            return domain.values[trial.suggest_categorical(name, distribution.choices)]
        if domain.kind == "int":
            return trial.suggest_int(name, distribution.low, distribution.high)
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)

    def _distribution(self, domain: Domain) -> tuple[str, Any]:
        """Return a domain's name and distribution for Optuna: one per case; lists by index."""
        representatives = self._optuna.distributions
        if _is_listed(domain):
            return domain.where, representatives.CategoricalDistribution(range(len(domain.values)))
        low, high = domain.values
        if domain.kind == "int":
            return domain.where, representatives.IntDistribution(low, high)
        return domain.where, representatives.FloatDistribution(low, high, log=domain.kind == "loguniform")

    def _sampler(self, number: int, attempt: int) -> Any:
        seed = random.Random(f"{self._space.config.seed} {number} {attempt}").getrandbits(32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)  # about `group`
            return self._optuna.samplers.TPESampler(
                n_startup_trials=self._space.config.searcher.startup,
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
            )


def preview(proposals: Sampler) -> list[TrialSpec]:
    """Return the trials of a study without results: all listed trials, or random proposals. Consumes the proposals."""
    return list(iter(proposals.next, None))


def _identity(point: Params) -> str:
    return json.dumps(point, sort_keys=True)


def _is_listed(domain: Domain) -> bool:
    return domain.kind in ("grid", "choice", "constant")


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(f"searcher optuna needs the package optuna; {install_command('optuna')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
