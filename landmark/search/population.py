"""Population-based training: how a trial takes over another's weights, and how settings are changed on the way."""

import contextlib
import dataclasses
import random
from collections.abc import Mapping
from typing import Any

from landmark.config import Recipe, UserError
from landmark.search.domains import Domain, Point, ancestors, combinations
from landmark.search.record import Exploit, StudyRecord, TrialRecord
from landmark.search.space import Space, TrialPlan

GROUPS = ("optimizer.", "schedule.", "loss.", "augment.")
"""Groups of settings that may change between two epochs: all others decide what the weights, or the data, are."""
FIXED = ("optimizer.name", "optimizer.layer_decay", "schedule.name")
"""Settings of them that the optimizer's state or the schedule's shape depends on."""
FACTORS = (0.8, 1.25)
TRIES = 16
"""Changed points, each value of which is right but not with the others, before the source's own point is taken."""


def changeable(space: Space) -> list[str]:
    """Return the searched keys that population-based training may change; raises UserError where there is none."""
    keys = [key for key in _free(space) if any(domain.kind != "constant" for domain in space.parameters[key].domains())]
    if not keys:
        raise UserError(
            f"{space.source}: scheduler pbt changes settings of {', '.join(group.rstrip('.') for group in GROUPS)} while "
            "trials run, but none is searched; add one, such as optimizer.lr: {loguniform: [0.001, 0.1]}"
        )
    return keys


def _free(space: Space) -> list[str]:
    """Return the searched keys that may differ after an exploit: no key that has to stay as it is goes by one of them."""
    free = [key for key in space.parameters if key.startswith(GROUPS) and key not in FIXED]
    kept = {above for key in space.parameters if key not in free for above in ancestors(key, space.parameters)}
    return [key for key in free if key not in kept]


def explored(space: Space, point: Mapping[str, Any], resample: float, draws: random.Random) -> Point:
    """Return a point of the space near another one, key by key.

    A value moves to a neighbour or, with probability `resample`, is drawn again. It is always drawn again if the key that
    its domain goes by has another value now. Keys that have no domain any more are left out.
    """
    free = _free(space)

    def options(key: str, domain: Domain) -> list[Any]:
        if key not in free:
            return [point[key]]
        same = key in point and domain is space.parameters[key].domain(point) and domain.contains(point[key])
        if same and draws.random() >= resample:
            return [moved(domain, point[key], draws)]
        return [domain.draw(draws)]

    return next(combinations(space.parameters, options))


def moved(domain: Domain, value: Any, draws: random.Random) -> Any:
    """Return a neighbour of a value: 0.8 or 1.25 times as much within the bounds, or the next listed one up or down."""
    if domain.is_continuous:
        low, high = domain.values
        return min(high, max(low, value * draws.choice(FACTORS)))
    values = list(domain.all())
    place = values.index(value)
    neighbours = [values[near] for near in (place - 1, place + 1) if 0 <= near < len(values)]
    return draws.choice(neighbours or values)


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return key -> both values, where they differ."""
    return {key: [before[key], value] for key, value in after.items() if value != before[key]}


class Population:
    """The trials of a study that learn from each other."""

    def __init__(self, space: Space, recipe: Recipe, record: StudyRecord) -> None:
        self.space = space
        self.recipe = recipe
        self.record = record

    def take_over(self, trial: TrialRecord, source: TrialRecord, draws: random.Random) -> None:
        """Plan that a trial continues with another's weights, and its settings with changes.

        The trial's next process fetches the weights and reports whether they were still there.
        """
        before = source.plan
        plan = self._changed(before, trial.plan, draws)
        exploit = Exploit(
            trial=trial.plan.name,
            source=before.name,
            epoch=trial.epochs_run,
            point=plan.point,
            changed=differing(trial.plan.parameters, plan.parameters),
            explored=differing(before.parameters, plan.parameters),
        )
        self.record.plan_exploit(exploit, plan)

    def _changed(self, source: TrialPlan, trial: TrialPlan, draws: random.Random) -> TrialPlan:
        """Return a plan near the source's, or the same one if no recipe can have the values that are tried."""
        for _ in range(TRIES):
            point = explored(self.space, source.point, self.space.config.scheduler.resample, draws)
            with contextlib.suppress(UserError):
                return dataclasses.replace(self.space.plan(trial.number, point, self.recipe), name=trial.name)
        return dataclasses.replace(source, number=trial.number, name=trial.name)
