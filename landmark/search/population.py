"""Population-based training: how a trial takes over another's weights, and how settings are changed on the way."""

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

from landmark.config import Recipe, UserError
from landmark.search.domains import Domain, Point
from landmark.search.record import Exploit, StudyRecord, TrialRecord
from landmark.search.space import Space, TrialPlan
from landmark.training.store import CheckpointStore

GROUPS = ("optimizer.", "schedule.", "loss.", "augment.")
"""Groups of settings that may change between two epochs: all others decide what the weights, or the data, are."""
FIXED = ("optimizer.name", "optimizer.layer_decay", "schedule.name")
"""Settings of them that the optimizer's state or the schedule's shape depends on."""
FACTORS = (0.8, 1.25)


def changeable(space: Space) -> list[str]:
    """Return the searched keys that population-based training may change; raises UserError where there is none."""
    keys = [
        key
        for key, parameter in space.parameters.items()
        if key.startswith(GROUPS)
        and key not in FIXED
        and any(domain.kind != "constant" for domain in parameter.domains())
    ]
    if not keys:
        raise UserError(
            f"{space.source}: scheduler pbt changes settings of {', '.join(group.rstrip('.') for group in GROUPS)} while "
            "trials run, but none is searched; add one, such as optimizer.lr: {loguniform: [0.001, 0.1]}"
        )
    return keys


def explored(space: Space, point: Mapping[str, Any], resample: float, draws: random.Random) -> Point:
    """Return a point near another one, or with some values drawn anew, within the space's domains."""
    changed = dict(point)
    for key in changeable(space):
        domain = space.parameters[key].domain(changed)
        if key in changed and domain is not None and domain.kind != "constant":
            if draws.random() >= resample:
                changed[key] = moved(domain, changed[key], draws)
            else:
                changed[key] = domain.draw(draws) if domain.is_random else draws.choice(domain.values)
    return changed


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

    def __init__(
        self,
        space: Space,
        recipe: Recipe,
        record: StudyRecord,
        store_of: Callable[[TrialPlan], CheckpointStore],
    ) -> None:
        self.space = space
        self.recipe = recipe
        self.record = record
        self.store_of = store_of

    def take_over(self, trial: TrialRecord, source: TrialRecord, draws: random.Random) -> bool:
        """Give a trial another's newest checkpoint, and its settings with changes; False where there is no checkpoint."""
        before = source.plan
        point = explored(self.space, before.point, self.space.config.scheduler.resample, draws)
        plan = self.space.plan(trial.plan.number, point, self.recipe)
        epoch = self.store_of(trial.plan).adopt(self.store_of(before))
        if epoch is None:
            return False
        exploit = Exploit(
            trial=trial.plan.name,
            source=before.name,
            epoch=epoch,
            point=point,
            changed=differing(trial.plan.parameters, plan.parameters),
            explored=differing(before.parameters, plan.parameters),
        )
        self.record.take_over(exploit, dataclasses.replace(plan, name=trial.plan.name))
        return True
