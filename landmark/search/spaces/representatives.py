"""Representative trials of a study: the combinations of settings that determine resources, or a covering sample of them."""

from collections.abc import Callable, Iterable

from landmark.config import Recipe
from landmark.progress import Progress
from landmark.search.spaces import domains
from landmark.search.spaces.domains import Params
from landmark.search.spaces.samplers import ListSampler, Sampler
from landmark.search.spaces.space import DATASET, Space, TrialSpec

DECIDING = ("loader.", "model.", "resizing.", "compute.", "ema.", "optimizer.name")
"""Prefixes of the keys that determine a trial's resources."""
BY_LENGTH = ("cosine", "one_cycle")
"""Schedules that depend on the trial's length: at the same epoch, a shorter trial has a lower learning rate."""


def representative_specs(space: Space, recipe: Recipe, proposals: Sampler) -> list[TrialSpec]:
    """Return the trials of a list; for proposals, one per combination of epochs, dataset and resource settings.

    If there are too many combinations, `domains.covering` chooses some that contain every value.
    """
    if isinstance(proposals, ListSampler):
        return proposals.plans
    keys = [key for key in space.parameters if key in ("epochs", DATASET) or key.startswith(DECIDING)]
    points = domains.covering_points(space.parameters, keys)
    progress = Progress(f"checking {space.source}", len(points), "combinations")
    plans = []
    for number, point in enumerate(points, 1):
        plans.append(space.plan(number, point, recipe))
        progress.update(1)
    progress.clear()
    return plans


def most_demanding(space: Space, recipe: Recipe, value: Callable[[Recipe], float]) -> Recipe:
    """Return a recipe of the space that approximately maximizes `value`: each key in turn takes its best value.

    The number of evaluated recipes grows with the sum of the keys' values, not with their product.
    """
    keys = [key for key in space.parameters if key.startswith(DECIDING)]
    for key in list(keys):
        keys += [by for by in domains.ancestors(key, space.parameters) if by not in keys]
    keys.sort(key=lambda key: len(list(domains.ancestors(key, space.parameters))))
    chosen: Params = {}
    best = recipe
    for key in keys:
        domain = space.parameters[key].domain(chosen)
        if domain is None:
            continue
        options = [(space.plan(0, {**chosen, key: each}, recipe).recipe, each) for each in domain.values]
        best, chosen[key] = max(options, key=lambda option: value(option[0]))
    return best


def different_schedules(space: Space, representatives: Iterable[TrialSpec]) -> str | None:
    """Return a warning if a scheduler compares trials of different lengths with length-dependent schedules; else None."""
    if space.config.scheduler.name == "none":
        return None
    plans = list(representatives)
    lengths = sorted({plan.recipe.epochs for plan in plans})
    names = sorted({plan.recipe.schedule.name for plan in plans} & set(BY_LENGTH))
    if len(lengths) < 2 or not names:
        return None
    return (
        f"warning: {space.source}: trials of {', '.join(map(str, lengths))} epochs have the schedule {' or '.join(names)}, and "
        f"{space.config.scheduler.name} compares them at the same epoch: this favors short trials, whose rate has decayed further. "
        "Search one number of epochs, or set schedule.name to constant or scheduler.name to none"
    )
