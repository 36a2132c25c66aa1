"""Population-based training: how trials copy weights from others (exploit) and change settings (explore)."""

import contextlib
import dataclasses
import random
from collections.abc import Mapping
from typing import Any

from landmark.config import Recipe, UserError
from landmark.search.spaces.domains import Domain, Params, ancestors, combinations
from landmark.search.spaces.space import Space, TrialSpec
from landmark.search.state.state import Exploit, StudyState, TrialState

GROUPS = ("optimizer.", "schedule.", "loss.", "augment.")
"""Groups of settings that may change between epochs; all others determine the weights or the data."""
FIXED = ("optimizer.name", "optimizer.layer_decay", "schedule.name")
"""Settings in these groups that must not change: the optimizer's state or the schedule's shape depends on them."""
FACTORS = (0.8, 1.25)
TRIES = 16
"""Attempts to find a point with a valid recipe; after that, the source's own point is used."""


def changeable(space: Space) -> list[str]:
    """Return the searched keys that population-based training may change; raises UserError if there are none."""
    keys = [key for key in _free(space) if any(domain.kind != "constant" for domain in space.parameters[key].domains())]
    if not keys:
        raise UserError(
            f"{space.source}: scheduler pbt changes settings of {', '.join(group.rstrip('.') for group in GROUPS)} while "
            "trials run, but the space searches none; add one, such as optimizer.lr: {loguniform: [0.001, 0.1]}"
        )
    return keys


def _free(space: Space) -> list[str]:
    """Return the searched keys that may change in an exploit; no fixed key depends on one of them."""
    free = [key for key in space.parameters if key.startswith(GROUPS) and key not in FIXED]
    kept = {above for key in space.parameters if key not in free for above in ancestors(key, space.parameters)}
    return [key for key in free if key not in kept]


def explore(space: Space, point: Mapping[str, Any], resample: float, generator: random.Random) -> Params:
    """Return a point of the space near another one, changed key by key.

    A value is perturbed or, with probability `resample`, sampled again. It is always sampled again if its domain has
    changed because the key that the domain depends on has. Keys that no longer have a domain are left out.
    """
    free = _free(space)

    def options(key: str, domain: Domain) -> list[Any]:
        if key not in free:
            return [point[key]]
        same = key in point and domain is space.parameters[key].domain(point) and domain.contains(point[key])
        if same and generator.random() >= resample:
            return [moved(domain, point[key], generator)]
        return [domain.draw(generator)]

    return next(combinations(space.parameters, options))


def moved(domain: Domain, value: Any, generator: random.Random) -> Any:
    """Return a perturbed value: 0.8 or 1.25 times the value, clipped to the bounds, or an adjacent listed value."""
    if domain.is_continuous:
        low, high = domain.values
        return min(high, max(low, value * generator.choice(FACTORS)))
    values = list(domain.all())
    place = values.index(value)
    neighbors = [values[near] for near in (place - 1, place + 1) if 0 <= near < len(values)]
    return generator.choice(neighbors or values)


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return key -> [value before, value after] of the keys whose values differ."""
    return {key: [before[key], value] for key, value in after.items() if value != before[key]}


class Population:
    """Plans the exploits of a study's trials."""

    def __init__(self, space: Space, recipe: Recipe, record: StudyState) -> None:
        self.space = space
        self.recipe = recipe
        self.record = record

    def exploit(self, trial: TrialState, source: TrialState, generator: random.Random) -> None:
        """Plan that a trial continues with the source's weights and perturbed settings.

        The trial's next process copies the weights and reports whether they still existed.
        """
        before = source.plan
        plan = self._changed(before, trial.plan, generator)
        exploit = Exploit(
            trial=trial.plan.name,
            source=before.name,
            epoch=trial.epochs_run,
            point=plan.point,
            changed=differing(trial.plan.parameters, plan.parameters),
            explored=differing(before.parameters, plan.parameters),
        )
        self.record.plan_exploit(exploit, plan)

    def _changed(self, source: TrialSpec, trial: TrialSpec, generator: random.Random) -> TrialSpec:
        """Return a plan near the source's, or the source's plan if no attempt gives a valid recipe."""
        for _ in range(TRIES):
            point = explore(self.space, source.point, self.space.config.scheduler.resample, generator)
            with contextlib.suppress(UserError):
                return dataclasses.replace(self.space.plan(trial.number, point, self.recipe), name=trial.name)
        return dataclasses.replace(source, number=trial.number, name=trial.name)
