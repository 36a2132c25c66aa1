"""Trials that a searcher of Ray Tune suggests, named by its import path."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import Searcher

from landmark.config import Recipe, UserError
from landmark.search.import_path import call, create, load_class, seeded
from landmark.search.spaces import domains
from landmark.search.spaces.domains import Domain, Params
from landmark.search.spaces.space import Space, TrialSpec

MAX_TRIES = 16
"""Maximum number of suggestions in a row that are no valid recipe."""
RESERVED = {"metric": "the space's metric", "mode": "the space's metric", "space": "the space's parameters"}
"""Argument of a searcher -> the setting that determines it."""


class RaySampler:
    """Trials that a `ray.tune.search.Searcher` suggests.

    The journal stores the suggestions. A restore asks a new searcher for them again and gives it the same results, in the
    same order, and compares its suggestions with the journal. `random` and NumPy are seeded around each call. The searcher
    gets a trial's best result when the trial ends. Every case of a conditional parameter is a parameter of its own.
    """

    def __init__(self, space: Space, recipe: Recipe, limit: int | None = None) -> None:
        config = space.config.searcher
        kind = load_class(config.name, Searcher, "searcher.name")
        self._name = config.name
        self._searcher = create(kind, config.options, "searcher.options", RESERVED, {})
        self._space = space
        self._recipe = recipe
        self._metric = space.config.metric
        space.check(recipe)
        space.check_networks(space.networks(recipe))
        self.total = min(space.total, limit or space.total)
        self._ids: dict[int, str] = {}
        """Number of a trial -> the searcher's id."""
        self._told = set[int]()
        self._calls = 0
        self._finished = False
        found = (domain for parameter in space.parameters.values() for domain in parameter.domains())
        searched = {_name(domain): _ray_domain(domain) for domain in found if domain.kind != "constant"}
        if not self._call("set_search_properties", self._metric, space.config.mode(), searched):
            raise UserError(f"{space.source}: searcher {config.name} does not accept the space's parameters")

    def next(self) -> TrialSpec | None:
        """Return the next trial; None if there are no more.

        Raises UserError if the searcher has no suggestion now, or only invalid ones.
        """
        number = len(self._ids) + 1
        for attempt in range(MAX_TRIES):
            if self._finished or number > self.total:
                return None
            identifier = f"{number:05d}-{attempt}"
            values = self._call("suggest", identifier)
            if values is None:
                raise UserError(
                    f"searcher {self._name} has no suggestion for trial {number} now; remove its limit of concurrent trials, "
                    "and use --max-concurrent"
                )
            self._finished = values == Searcher.FINISHED
            if not self._finished and (plan := self._plan(number, values)) is not None:
                self._ids[number] = identifier
                return plan
            if not self._finished:
                self._call("on_trial_complete", identifier, None, True)
        raise UserError(
            f"{self._space.source}: searcher {self._name} suggested {MAX_TRIES} invalid recipes in a row; restrict the parameters"
        )

    def restore(self, plan: TrialSpec) -> None:
        """Let the searcher suggest a trial of the journal again; raises UserError if it suggests another one."""
        again = self.next()
        if again is None or _identity(again.point) != _identity(plan.point):
            suggested = "no trial" if again is None else _identity(again.point)
            raise UserError(
                f"the journal has trial {plan.name} with {_identity(plan.point)}, but searcher {self._name} suggests "
                f"{suggested}; set its seed in searcher.options, or start a study with another --name"
            )

    def tell(self, plan: TrialSpec, metrics: Mapping[str, float] | None) -> None:
        """Report the first result of a trial; a metric that is not finite counts as a failure."""
        if plan.number in self._told:
            return
        self._told.add(plan.number)
        failed = metrics is None or not math.isfinite(metrics[self._metric])
        result = None if failed or metrics is None else {**metrics, "config": plan.point}
        self._call("on_trial_complete", self._ids[plan.number], result, failed)

    def _plan(self, number: int, values: Mapping[str, Any]) -> TrialSpec | None:
        """Return the trial of a suggestion; None if its values are no valid recipe together."""
        point: Params = next(domains.combinations(self._space.parameters, lambda _, domain: [_value(domain, values)]))
        try:
            return self._space.plan(number, point, self._recipe)
        except UserError:
            return None

    def _call(self, method: str, *arguments: Any) -> Any:
        self._calls += 1
        with seeded(self._space.config.seed, "searcher", self._calls):
            return call(f"searcher {self._name}, {method}", getattr(self._searcher, method), *arguments)


def _ray_domain(domain: Domain) -> Any:
    """Return a domain of Ray Tune."""
    if domain.kind in ("grid", "choice"):
        return tune.choice(list(domain.values))
    low, high = domain.values
    if domain.kind == "int":
        return tune.randint(low, high + 1)
    return tune.loguniform(low, high) if domain.kind == "loguniform" else tune.uniform(low, high)


def _name(domain: Domain) -> str:
    """Return a domain's name for the searcher. Some searchers split names at a slash."""
    return domain.where.replace("/", "|")


def _value(domain: Domain, values: Mapping[str, Any]) -> Any:
    """Return a suggested value as a plain number or text, as JSON stores it."""
    if domain.kind == "constant":
        return domain.values[0]
    value = values[_name(domain)]
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if domain.kind == "int" else value


def _identity(point: Params) -> str:
    return json.dumps(point, sort_keys=True)
