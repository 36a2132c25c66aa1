"""Search spaces: reads a space from YAML and builds trial plans with validated recipes."""

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
from landmark.config.files import with_current_names
from landmark.config.renamed import current_point, current_value
from landmark.progress import Progress
from landmark.recipes import merged, recipe_values
from landmark.recipes.files import built_in_or_named, yaml_names
from landmark.search.spaces import domains
from landmark.search.spaces.domains import Params

FOLDER = importlib.resources.files("landmark") / "tune_spaces"
"""The built-in spaces. In a checkout, it is a link to the folder tune_spaces."""
DATASET = "dataset"
"""Key outside the recipe: the dataset on which a trial is trained."""
NAME = "name"
"""Key of a point outside the recipe: the point's name."""
NAME_LENGTH = 64

NETWORK = ("model.", "loader.image_size", "resizing.")
"""Prefixes of the keys that determine the model and its image size."""


@dataclass(kw_only=True, frozen=True)
class TrialSpec:
    """The settings of one trial, known before it starts."""

    number: int
    """Its number in the study, counted from 1."""
    name: str
    """Its number and values: unique in the study and valid as a folder name."""
    point: Params
    """Key -> value chosen from the space, in JSON types; `Space.plan` rebuilds the same plan from it."""
    parameters: dict[str, Any]
    """Searched key -> value in this trial, chosen or from the common recipe."""
    recipe: Recipe
    """Its complete recipe."""
    dataset: str | None
    """Name of its dataset in the space; None for the study's dataset."""


class Space:
    """A search space with validated keys, domains and cases; `check` and `plan` validate values with a recipe.

    All raise UserError with the file, the key and the expected values.
    """

    def __init__(self, config: SpaceConfig, source: str, text: str) -> None:
        parameters = current_point(config.parameters, source)
        points = [current_point(point, source) for point in config.points]
        recipe = with_current_names(Recipe, config.recipe, f"{source}: recipe")
        self.config = config = dataclasses.replace(config, recipe=recipe, parameters=parameters, points=points)
        self.source = source
        self.text = text
        self._leaves = leaf_keys(Recipe)
        if "monitor" in config.recipe:
            raise UserError(f"{source}: recipe.monitor is set by the space's metric; remove it and set 'metric'")
        for key in config.parameters:
            self._check_key(str(key), "parameters.", (DATASET,))
        self.parameters = domains.read_parameters(config.parameters, source)
        """Searched key -> its domains; empty if the space lists points."""
        for number, point in enumerate(config.points, 1):
            for key in point:
                self._check_key(str(key), f"points: row {number}: ", (NAME, DATASET))
        found = [domain for parameter in self.parameters.values() for domain in parameter.domains()]
        if config.samples > 1 and config.searcher.name == "listed" and not any(domain.is_random for domain in found):
            raise UserError(f"{source}: samples is {config.samples}, but no parameter is random; remove samples")

    @classmethod
    def load(cls, name: str, changes: Mapping[str, Any] | None = None) -> "Space":
        """Read a space from a YAML file (path or URI), or by name from tune_spaces/.

        changes: nested keys that replace those of the file. If the scheduler or searcher has another name, the file's
        settings of it are dropped.
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
        """Return the common recipe of all trials: the space's recipe keys over the recipe `base` or the space's base."""
        name = base or self.config.base
        return self.recipe_over(recipe_values(name) if name else {})

    def recipe_over(self, values: Mapping[str, Any]) -> Recipe:
        """Return the common recipe of all trials over the values of another recipe, given as nested keys."""
        values = {**merged(values, self.config.recipe), "monitor": self.config.metric}
        return from_mapping(Recipe, values, f"{self.source}: recipe")

    @functools.cached_property
    def points(self) -> list[Params]:
        """The values of each listed trial: the points, or the grid combined with each random sample."""
        if self.config.points:
            return self.config.points
        generator = random.Random(self.config.seed)
        return [
            point for _ in range(self.config.samples) for point in domains.sampled_points(self.parameters, generator)
        ]

    @functools.cached_property
    def total(self) -> int:
        """Number of trials in a study of the whole space."""
        if self.config.searcher.name == "listed":
            return len(self.points)
        return domains.count(self.parameters, self.config.samples)

    def trials(self, recipe: Recipe) -> list[TrialSpec]:
        """Return all listed trials in the order of the file; searched keys override the common recipe."""
        self.check(recipe)
        progress, plans = Progress(f"checking {self.source}", len(self.points), "trials"), []
        for number, point in enumerate(self.points, 1):
            plans.append(self.plan(number, point, recipe))
            progress.update(1)
        progress.clear()
        return plans

    def plan(self, number: int, point: Mapping[str, Any], recipe: Recipe) -> TrialSpec:
        """Return the trial with a number (counted from 1) and point over the common recipe."""
        values = {key: value for key, value in point.items() if key not in (NAME, DATASET)}
        resolved_recipe = self._build(_merged(to_mapping(recipe), values), f"trial {number} ({_description(values)})")
        resolved = to_mapping(resolved_recipe)
        dataset = point.get(DATASET)
        parameters = {key: dataset if key == DATASET else _get(resolved, key) for key in self.keys}
        label = str(point.get(NAME) or "-".join(_short(value) for value in parameters.values() if value is not None))
        digits = max(3, len(str(self.total)))
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", f"{number:0{digits}d}-{label}")[:NAME_LENGTH].rstrip("-_.")
        return TrialSpec(
            number=number,
            name=name,
            point=dict(point),
            parameters=parameters,
            recipe=resolved_recipe,
            dataset=dataset,
        )

    def check(self, recipe: Recipe) -> None:
        """Check every value in the file with the common recipe, whether or not a trial uses it."""
        if recipe.monitor != self.config.metric:
            raise UserError(
                f"--recipe.monitor is {recipe.monitor}, but the metric of {self.source} is {self.config.metric}; "
                "trials are compared by the space's metric; change that instead"
            )
        base = to_mapping(recipe)
        for domain, points in domains.probes(self.parameters):
            self._check_one([_without_dataset(point) for point in points], base, domain.where)

    def networks(self, recipe: Recipe) -> list[TrialSpec]:
        """Return one trial per combination of the values that determine the model and its image size.

        If there are too many combinations, `domains.covering` chooses some that contain every value.
        """
        keys = [key for key in self.parameters if key.startswith(NETWORK)]
        points = domains.covering_points(self.parameters, keys)
        return [self.plan(number, point, recipe) for number, point in enumerate(points, 1)]

    def check_networks(self, plans: Sequence[TrialSpec]) -> None:
        """Check each trial's model with its image sizes, by a forward pass on the meta device.

        Raises UserError with the values that are incompatible.
        """
        progress = Progress(f"checking the models of {self.source}", len(plans), "trials")
        for plan in plans:
            model = dataclasses.replace(plan.recipe.model, weights=None)
            if (reason := _misfit(model, plan.recipe.loader.image_size, plan.recipe.resizing.start_size)) is not None:
                raise UserError(
                    f"{self.source}: trials with {_description(plan.point) or 'the common recipe'}: {reason}"
                )
            progress.update(1)
        progress.clear()

    def _check_one(self, points: Sequence[Params], base: Mapping[str, Any], where: str) -> None:
        """Raise the first point's error unless one of the points is valid."""
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
                raise UserError(
                    f"{self.source}: {where}monitor is set by the space's metric; remove it and set 'metric'"
                )
            return
        below = [leaf for leaf in self._leaves if leaf.startswith(f"{key}.")]
        if below:
            raise UserError(f"{self.source}: {where}{key} is a group; give one of its keys: {', '.join(below)}")
        hint = nearest(key, [*self._leaves, *special])
        raise UserError(f"{self.source}: {where}{key}: not a key of a recipe; {hint}")

    def _build(self, values: Mapping[str, Any], where: str) -> Recipe:
        recipe = from_mapping(Recipe, values, f"{self.source}: {where}")
        if (reason := _unknown(recipe.model.backbone)) is not None:
            raise UserError(f"{self.source}: {where}: {reason}")
        return recipe


def space_names() -> list[str]:
    """Return the names of the built-in spaces."""
    return yaml_names(FOLDER)


def leaf_keys(kind: type) -> list[str]:
    """Return the dotted keys of all leaf fields of a nested config dataclass."""
    keys = []
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            keys += [f"{field.name}.{key}" for key in leaf_keys(field.type)]
        else:
            keys.append(field.name)
    return keys


def _read(name: str) -> tuple[str, str]:
    """Return the source and the text of a space."""
    name = current_value("--space", name, "command line")
    if (found := built_in_or_named(name, FOLDER, "tune_spaces", "search space")) is not None:
        return found
    raise UserError(f"--space {name}: neither a file nor a space in tune_spaces/; {nearest(name, space_names())}")


@functools.cache
def _unknown(backbone: str) -> str | None:
    """Return why there is no model with a name; None if there is one."""
    from landmark.models import check_name  # imports torch and torchvision, which reading a space does not need

    try:
        check_name(backbone)
    except UserError as error:
        return str(error)
    return None


@functools.cache
def _misfit(model: ModelConfig, image_size: int, start_size: int | None) -> str | None:
    """Return why a model cannot process images of these sizes; None if it can. The number of classes does not matter."""
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


def _without_dataset(point: Params) -> Params:
    return {key: value for key, value in point.items() if key != DATASET}


def _get(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _description(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())
