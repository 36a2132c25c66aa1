"""Search spaces: a YAML file says which trials there can be; each becomes a plan, its whole recipe checked."""

import dataclasses
import functools
import importlib.resources
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from landmark.config import (
    ModelConfig,
    Recipe,
    SpaceConfig,
    UserError,
    from_mapping,
    nearest,
    parse_mapping,
    parse_yaml,
    to_mapping,
)
from landmark.progress import Progress
from landmark.recipes import merged, recipe_values
from landmark.recipes.files import is_named_file, named_text
from landmark.search import domains
from landmark.search.domains import Point

DATASET = "dataset"
"""Key that is no recipe key: which dataset a trial is trained on."""
NAME = "name"
"""Key of a point that is no recipe key: what it is called."""
NAME_LENGTH = 64

NETWORK = ("model.", "loader.image_size", "resizing.")
"""What decides, or begins the keys that decide, which network is built and for which images."""


@dataclass(kw_only=True, frozen=True)
class TrialPlan:
    """One trial of a study, known before it starts."""

    number: int
    """Its place in the study, counted from 1."""
    name: str
    """Its number and values: unique in the study, fit for a folder's name."""
    point: Point
    """What the space chose for it, by key, as JSON has it: `Space.plan` makes the same plan out of it again."""
    parameters: dict[str, Any]
    """Value of each searched key in this trial, chosen or the recipe's own."""
    recipe: Recipe
    """All that it learns by."""
    dataset: str | None
    """Its dataset as the space names it; None: the study's."""


class Space:
    """A search space whose keys, domains and cases are right; `check` and `plan` check values together with a recipe.

    All raise UserError that names the file, the key and what was expected.
    """

    def __init__(self, config: SpaceConfig, source: str, text: str) -> None:
        self.config = config
        self.source = source
        self.text = text
        self._leaves = leaf_keys(Recipe)
        if "monitor" in config.recipe:
            raise UserError(f"{source}: recipe.monitor follows the space's metric; remove it and set 'metric'")
        for key in config.parameters:
            self._check_key(str(key), "parameters.", (DATASET,))
        self.parameters = domains.read_parameters(config.parameters, source)
        """The searched keys and their domains; none where points are listed."""
        for number, point in enumerate(config.points, 1):
            for key in point:
                self._check_key(str(key), f"points: row {number}: ", (NAME, DATASET))
        found = [domain for parameter in self.parameters.values() for domain in parameter.domains()]
        if config.samples > 1 and config.searcher.name == "listed" and not any(domain.is_random for domain in found):
            raise UserError(f"{source}: samples is {config.samples}, but no parameter is random; remove samples")

    @classmethod
    def load(cls, name: str, changes: Mapping[str, Any] | None = None) -> "Space":
        """Read the space in a YAML file (path or URI), or the one of that name in tune_spaces/.

        changes: nested keys that replace those of the file. A scheduler or searcher of another name takes none of the file's
        settings, which are another one's.
        """
        source, text = _read(name)
        if not changes:
            return cls(parse_yaml(SpaceConfig, text, source), source, text)
        values = parse_mapping(text, source)
        from_mapping(SpaceConfig, values, source)
        for key in ("scheduler", "searcher"):
            if key in changes and values.get(key, {}).get("name") != changes[key]["name"]:
                values.pop(key, None)
        values = merged(values, changes)
        return cls(from_mapping(SpaceConfig, values, source), source, yaml.safe_dump(values, sort_keys=False))

    @property
    def keys(self) -> list[str]:
        """The searched keys, in the order of the file."""
        return list(self.parameters) or list(
            dict.fromkeys(key for point in self.config.points for key in point if key != NAME)
        )

    def recipe(self, base: str | None = None) -> Recipe:
        """Return what all trials have in common, as far as the space says it, over the recipe `base` or the space's own."""
        name = base or self.config.base
        return self.recipe_over(recipe_values(name) if name else {})

    def recipe_over(self, values: Mapping[str, Any]) -> Recipe:
        """Return what all trials have in common over the values of a recipe, as nested keys."""
        values = {**merged(values, self.config.recipe), "monitor": self.config.metric}
        return from_mapping(Recipe, values, f"{self.source}: recipe")

    @functools.cached_property
    def points(self) -> list[Point]:
        """The values of each trial that is listed: the points, or the grid crossed with each draw of what is random."""
        if self.config.points:
            return self.config.points
        generator = random.Random(self.config.seed)
        return [point for _ in range(self.config.samples) for point in domains.drawn(self.parameters, generator)]

    @functools.cached_property
    def total(self) -> int:
        """Trials that a study of the whole space has."""
        if self.config.searcher.name == "listed":
            return len(self.points)
        return domains.count(self.parameters, self.config.samples)

    def trials(self, recipe: Recipe) -> list[TrialPlan]:
        """Return all trials that are listed, in the order of the file, over a common recipe that the space's keys override."""
        self.check(recipe)
        progress, plans = Progress(f"checking {self.source}", len(self.points), "trials"), []
        for number, point in enumerate(self.points, 1):
            plans.append(self.plan(number, point, recipe))
            progress.update(1)
        progress.clear()
        return plans

    def plan(self, number: int, point: Mapping[str, Any], recipe: Recipe) -> TrialPlan:
        """Return the trial of a number (counted from 1) and point over the common recipe."""
        values = {key: value for key, value in point.items() if key not in (NAME, DATASET)}
        resolved_recipe = self._build(_merged(to_mapping(recipe), values), f"trial {number} ({_told(values)})")
        resolved = to_mapping(resolved_recipe)
        dataset = point.get(DATASET)
        parameters = {key: dataset if key == DATASET else _get(resolved, key) for key in self.keys}
        label = str(point.get(NAME) or "-".join(_short(value) for value in parameters.values() if value is not None))
        digits = max(3, len(str(self.total)))
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", f"{number:0{digits}d}-{label}")[:NAME_LENGTH].rstrip("-_.")
        return TrialPlan(
            number=number,
            name=name,
            point=dict(point),
            parameters=parameters,
            recipe=resolved_recipe,
            dataset=dataset,
        )

    def check(self, recipe: Recipe) -> None:
        """Check every value that the file names over the common recipe, whether a trial comes to have it or not."""
        if recipe.monitor != self.config.metric:
            raise UserError(
                f"--recipe.monitor is {recipe.monitor}, but the metric of {self.source} is {self.config.metric}; "
                "trials are compared by the space's metric: change that"
            )
        base = to_mapping(recipe)
        for domain, points in domains.probes(self.parameters):
            self._check_one([_without_dataset(point) for point in points], base, domain.where)

    def networks(self, recipe: Recipe) -> list[TrialPlan]:
        """Return a trial for every combination of the values that decide which network and images a trial has.

        Of many combinations some that have every value, as `domains.covering` chooses them.
        """
        keys = [key for key in self.parameters if key.startswith(NETWORK)]
        points = domains.covering(self.parameters, keys)
        return [self.plan(number, point, recipe) for number, point in enumerate(points, 1)]

    def check_networks(self, plans: Sequence[TrialPlan]) -> None:
        """Try each trial's images on its network: a pass without storage, so that nothing is computed.

        Raises UserError that says which values do not go together.
        """
        progress = Progress(f"checking the networks of {self.source}", len(plans), "trials")
        for plan in plans:
            model = dataclasses.replace(plan.recipe.model, weights=None)
            if (reason := _misfit(model, plan.recipe.loader.image_size, plan.recipe.resizing.start_size)) is not None:
                raise UserError(f"{self.source}: trials with {_told(plan.point) or 'the common recipe'}: {reason}")
            progress.update(1)
        progress.clear()

    def _check_one(self, points: Sequence[Point], base: Mapping[str, Any], where: str) -> None:
        """Raise the first point's error unless one of the points is right."""
        first: UserError | None = None
        for point in points:
            try:
                self._build(_merged(base, point), where)
                return
            except UserError as error:
                first = first or error
        raise first or AssertionError(where)

    def _check_key(self, key: str, where: str, special: tuple[str, ...]) -> None:
        if key in self._leaves or key in special:
            if key == "monitor":
                raise UserError(f"{self.source}: {where}monitor follows the space's metric; remove it and set 'metric'")
            return
        below = [leaf for leaf in self._leaves if leaf.startswith(f"{key}.")]
        if below:
            raise UserError(f"{self.source}: {where}{key} is a group; give one of its keys: {', '.join(below)}")
        hint = nearest(key, [*self._leaves, *special])
        raise UserError(f"{self.source}: {where}{key}: no such key of a recipe; {hint}")

    def _build(self, values: Mapping[str, Any], where: str) -> Recipe:
        recipe = from_mapping(Recipe, values, f"{self.source}: {where}")
        if (reason := _unknown(recipe.model.backbone)) is not None:
            raise UserError(f"{self.source}: {where}: {reason}")
        return recipe


def space_names() -> list[str]:
    """Return the names of the spaces that come with the project."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder() if path.name.endswith(".yaml"))


def leaf_keys(kind: type) -> list[str]:
    """Return the dotted keys of all fields of a config dataclass that are no dataclasses themselves."""
    keys = []
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            keys += [f"{field.name}.{key}" for key in leaf_keys(field.type)]
        else:
            keys.append(field.name)
    return keys


def _folder() -> list[Any]:
    try:
        return list(importlib.resources.files("tune_spaces").iterdir())
    except ModuleNotFoundError:
        return []


def _read(name: str) -> tuple[str, str]:
    """Return where a space was found and its text."""
    for path in _folder():
        if path.name == f"{name}.yaml":
            return f"tune_spaces/{path.name}", path.read_text(encoding="utf-8")
    if is_named_file(name):
        return name, named_text(name, "search space")
    raise UserError(f"--space {name}: neither a file nor a space in tune_spaces/; {nearest(name, space_names())}")


@functools.cache
def _unknown(backbone: str) -> str | None:
    """Return why there is no network of a name; None where there is one."""
    from landmark.models import check_name  # torch and torchvision, which reading a space does without

    try:
        check_name(backbone)
    except UserError as error:
        return str(error)
    return None


@functools.cache
def _misfit(model: ModelConfig, image_size: int, start_size: int | None) -> str | None:
    """Return why a network cannot take images of these sizes; None where it can. The classes do not matter."""
    from landmark.models import check_images

    try:
        check_images(model, classes=2, image_size=image_size, start_size=start_size)
    except UserError as error:
        return str(error)
    return None


def _merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with the dotted keys of `values` replaced."""
    merged = dict(base)
    for key, value in values.items():
        *groups, leaf = key.split(".")
        target = merged
        for group in groups:
            target[group] = dict(target[group])
            target = target[group]
        target[leaf] = value
    return merged


def _without_dataset(point: Point) -> Point:
    return {key: value for key, value in point.items() if key != DATASET}


def _get(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())
