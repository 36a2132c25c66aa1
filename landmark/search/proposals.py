"""Where a study's trials come from: a list that is known before the first starts, or proposals that follow results."""

import itertools
import json
import math
import random
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from landmark.config import Recipe, UserError
from landmark.config.extras import install_command
from landmark.search import domains
from landmark.search.domains import Domain, Point
from landmark.search.space import Space, TrialPlan

MOST_TRIES = 16
"""Proposals, for one trial, of points that are there already or that no recipe can have, before points are drawn."""
MOST_DRAWS = 64
"""Random points, for one trial, that are there already or that no recipe can have, before all points are gone through."""
MOST_WALKED = 20_000
"""Points that are then gone through, besides those that are there already, before the space counts as used up."""
MAXIMISED = ("val_top1", "val_top5", "val_macro_recall", "images_per_s")


class Proposals(Protocol):
    """The trials of a study, one after the other."""

    total: int
    """Trials at most."""

    def next(self) -> TrialPlan | None:
        """Return the next trial; None when there is none any more."""

    def adopt(self, plan: TrialPlan) -> None:
        """Take over a trial that an earlier process of this study had from `next`; in their order, before `next`."""

    def told(self, plan: TrialPlan, metrics: Mapping[str, float] | None) -> None:
        """Take note of what a trial came to.

        metrics: of its best epoch: the space's metric, images_per_s and parameters (number of weights). None: it failed.
        """


def build_proposals(space: Space, recipe: Recipe, limit: int | None = None) -> Proposals:
    """Return the trials of a space over a common recipe, `limit` at most.

    Everything that can be checked before a trial starts is checked: each value, and each network that trials can have
    on the images they can have. Raises UserError for the first mistake.
    """
    if space.config.searcher.name == "listed":
        return Listed(space, recipe, limit)
    return OptunaProposals(space, recipe, limit)


class Listed:
    """Trials that are all known before the first one starts: points, or a grid and random draws."""

    def __init__(self, space: Space, recipe: Recipe, limit: int | None = None) -> None:
        self.plans = space.trials(recipe)
        """All that the space has, those beyond the limit too: the full grid that a study is compared with."""
        space.check_networks(self.plans)
        self.total = min(len(self.plans), limit or len(self.plans))
        self._given = 0

    def next(self) -> TrialPlan | None:
        """Return the next trial; None when there is none any more."""
        if self._given >= self.total:
            return None
        self._given += 1
        return self.plans[self._given - 1]

    def adopt(self, plan: TrialPlan) -> None:
        """Take over a trial: the next one is the one after it."""
        self._given = max(self._given, plan.number)

    def told(self, plan: TrialPlan, metrics: Mapping[str, float] | None) -> None:
        """Do nothing: a list does not follow results."""


class OptunaProposals:
    """Trials that Optuna proposes by tree-structured Parzen estimators, out of what those before came to.

    Multivariate (Falkner et al. 2018), each set of cases apart, and for several objectives by Pareto ranks (Ozaki et al.
    2020). Trials that run count as poor, so that those proposed meanwhile lie elsewhere; so do those that failed. One that
    stopped early counts with the best that it reached. A proposal is a function of the seed, its number and what was told
    before: of no generator's state. Needs the extra optuna.
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
            directions=["maximize" if name in MAXIMISED else "minimize" for name in self._objectives]
        )
        self._numbers: dict[int, int] = {}
        """Optuna's number of a trial by ours."""
        self._seen: set[str] = set()
        """Points that are there, or that no recipe can have."""
        self._used_up = False
        """Whether the space was found to have no further point."""

    def next(self) -> TrialPlan | None:
        """Return the next trial; None when there is none any more."""
        if self._used_up or len(self._numbers) >= self.total:
            return None
        number = max(self._numbers, default=0) + 1
        plan = self._proposed(number) or self._drawn(number)
        if plan is None:
            self._used_up = True
        else:
            self.adopt(plan)
        return plan

    def adopt(self, plan: TrialPlan) -> None:
        """Take over a trial; raises UserError where it is none of the space's."""
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
                f"{self._space.source}: trial {plan.name} is none that this space can have; choose another name for the study"
            ) from None
        self._numbers[plan.number] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(trial)
        self._seen.add(_identity(plan.point))

    def told(self, plan: TrialPlan, metrics: Mapping[str, float] | None) -> None:
        """Take note of what a trial came to; one whose objectives are not finite has failed."""
        values = None if metrics is None else [float(metrics[name]) for name in self._objectives]
        if values is None or not all(math.isfinite(value) for value in values):
            # Optuna leaves failed trials out of account; one that is pruned before its first report ranks last.
            self._study.tell(self._numbers[plan.number], state=self._optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(self._numbers[plan.number], values)

    def _proposed(self, number: int) -> TrialPlan | None:
        """Return what Optuna proposes; None where that is there already or no recipe can have it, however often asked."""
        for attempt in range(MOST_TRIES):
            self._study.sampler = self._sampler(number, attempt)
            trial = self._study.ask()
            point = self._point(trial)
            # What is known of it is added anew by `adopt`: so a restored study knows exactly as much.
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            if (plan := self._new(number, point)) is not None:
                return plan
        return None

    def _drawn(self, number: int) -> TrialPlan | None:
        """Return a random trial that is not there yet, or the next one of all; None if the space is used up."""
        generator = random.Random(f"{self._space.config.seed} {number}")
        drawn = (domains.one_drawn(self._space.parameters, generator) for _ in range(MOST_DRAWS))
        walked = itertools.islice(domains.walked(self._space.parameters, generator), MOST_WALKED + len(self._seen))
        points = itertools.chain(drawn, walked)
        return next((plan for point in points if (plan := self._new(number, point)) is not None), None)

    def _new(self, number: int, point: Point) -> TrialPlan | None:
        """Return the trial of a point; None where the point is there already or no recipe can have it."""
        if _identity(point) in self._seen:
            return None
        try:
            return self._space.plan(number, point, self._recipe)
        except UserError:  # each value is right, but not with these others
            self._seen.add(_identity(point))
            return None

    def _point(self, trial: Any) -> Point:
        """Return the point that Optuna suggests, from the keys that others go by on."""
        return next(domains.combinations(self._space.parameters, lambda _, domain: [self._suggested(trial, domain)]))

    def _suggested(self, trial: Any, domain: Domain) -> Any:
        name, distribution = self._distribution(domain)
        if _is_listed(domain):
            return domain.values[trial.suggest_categorical(name, distribution.choices)]
        if domain.kind == "int":
            return trial.suggest_int(name, distribution.low, distribution.high)
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)

    def _distribution(self, domain: Domain) -> tuple[str, Any]:
        """Return the name and the distribution that a domain has for Optuna: one a case, lists by their places."""
        kinds = self._optuna.distributions
        if _is_listed(domain):
            return domain.where, kinds.CategoricalDistribution(range(len(domain.values)))
        low, high = domain.values
        if domain.kind == "int":
            return domain.where, kinds.IntDistribution(low, high)
        return domain.where, kinds.FloatDistribution(low, high, log=domain.kind == "loguniform")

    def _sampler(self, number: int, attempt: int) -> Any:
        seed = random.Random(f"{self._space.config.seed} {number} {attempt}").getrandbits(32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)  # `group`, since 2.8 in 2021
            return self._optuna.samplers.TPESampler(
                n_startup_trials=self._space.config.searcher.startup,
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
            )


def preview(proposals: Proposals) -> list[TrialPlan]:
    """Return the trials that a study would have if it were told nothing: all that are listed, or random proposals.

    Uses the proposals up.
    """
    return list(iter(proposals.next, None))


def _identity(point: Point) -> str:
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
