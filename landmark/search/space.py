"""Search spaces: a YAML file becomes the list of trials, each with its whole recipe checked before anything starts."""

import dataclasses
import importlib.resources
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmark.config import Recipe, SpaceConfig, UserError, from_mapping, nearest, parse_yaml, to_mapping
from landmark.models import check_name
from landmark.recipes import merged, recipe_values

KINDS = ("grid", "choice", "uniform", "loguniform")
DATASET = "dataset"
"""Key that is no recipe key: which dataset a trial is trained on."""
NAME = "name"
"""Key of a point that is no recipe key: what it is called."""
NAME_LENGTH = 64


@dataclass(kw_only=True, frozen=True)
class TrialPlan:
    """One trial of a study, known before it starts."""

    name: str
    """Its number and values: unique in the study, fit for a folder's name."""
    parameters: dict[str, Any]
    """Value of each searched key in this trial."""
    recipe: Recipe
    """All that it learns by."""
    dataset: str | None
    """Its dataset as the space names it; None: the study's."""


class Space:
    """A search space whose keys and kinds are right; `trials` checks the values together with a recipe.

    Both raise UserError that names the file, the key and what was expected.
    """

    def __init__(self, config: SpaceConfig, source: str, text: str) -> None:
        self.config = config
        self.source = source
        self.text = text
        self._leaves = leaf_keys(Recipe)
        if "monitor" in config.recipe:
            raise UserError(f"{source}: recipe.monitor follows the space's metric; remove it and set 'metric'")
        for key, values in config.parameters.items():
            self._check_key(str(key), "parameters.", (DATASET,))
            self._check_domain(f"parameters.{key}", values)
        for number, point in enumerate(config.points, 1):
            for key in point:
                self._check_key(str(key), f"points: row {number}: ", (NAME, DATASET))
        if config.samples > 1 and not self._random_keys():
            raise UserError(f"{source}: samples is {config.samples}, but no parameter is random; remove samples")

    @classmethod
    def load(cls, name: str) -> "Space":
        """Read the space in a YAML file, or the one of that name in tune_spaces/."""
        source, text = _read(name)
        return cls(parse_yaml(SpaceConfig, text, source), source, text)

    @property
    def keys(self) -> list[str]:
        """The searched keys, in the order of the file."""
        if self.config.parameters:
            return [str(key) for key in self.config.parameters]
        return list(dict.fromkeys(key for point in self.config.points for key in point if key != NAME))

    def recipe(self, base: str | None = None) -> Recipe:
        """Return what all trials have in common, as far as the space says it, over the recipe `base` or the space's own."""
        name = base or self.config.base
        values = merged(recipe_values(name) if name else {}, self.config.recipe)
        return self._build({**values, "monitor": self.config.metric}, "recipe")

    def trials(self, recipe: Recipe) -> list[TrialPlan]:
        """Return all trials in the order of the file, over a common recipe that the space's keys override."""
        if recipe.monitor != self.config.metric:
            raise UserError(
                f"--recipe.monitor is {recipe.monitor}, but the metric of {self.source} is {self.config.metric}; "
                "trials are compared by the space's metric: change that"
            )
        base = to_mapping(recipe)
        self._check_bounds(base)
        points = list(self._points())
        width = max(3, len(str(len(points))))
        plans = [self._plan(f"{number:0{width}d}", point, base) for number, point in enumerate(points, 1)]
        self._check_backbones([plan.recipe.model.backbone for plan in plans])
        return plans

    def _plan(self, number: str, point: Mapping[str, Any], base: Mapping[str, Any]) -> TrialPlan:
        values = {key: value for key, value in point.items() if key not in (NAME, DATASET)}
        recipe = self._build(_merged(base, values), f"trial {int(number)} ({_told(values)})")
        resolved = to_mapping(recipe)
        dataset = point.get(DATASET)
        parameters = {key: dataset if key == DATASET else _get(resolved, key) for key in self.keys}
        label = str(point.get(NAME) or "-".join(_short(value) for value in parameters.values() if value is not None))
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", f"{number}-{label}")[:NAME_LENGTH].rstrip("-_.")
        return TrialPlan(name=name, parameters=parameters, recipe=recipe, dataset=dataset)

    def _points(self) -> Iterator[Mapping[str, Any]]:
        """Yield each trial's values: the listed points, or the grid crossed with each draw."""
        if self.config.points:
            yield from self.config.points
            return
        domains = {str(key): next(iter(domain.items())) for key, domain in self.config.parameters.items()}
        grids = {key: values for key, (kind, values) in domains.items() if kind == "grid"}
        drawn = {key: domain for key, domain in domains.items() if domain[0] != "grid"}
        generator = random.Random(self.config.seed)
        for _ in range(self.config.samples):
            for combination in itertools.product(*grids.values()):
                draws = {key: _draw(generator, kind, values) for key, (kind, values) in drawn.items()}
                chosen = dict(zip(grids, combination, strict=True)) | draws
                yield {key: chosen[key] for key in domains}

    def _random_keys(self) -> list[str]:
        return [key for key, domain in self.config.parameters.items() if "grid" not in domain]

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

    def _check_domain(self, where: str, domain: Any) -> None:
        expected = "expected {grid: […]}, {choice: […]}, {uniform: [low, high]} or {loguniform: [low, high]}"
        if not isinstance(domain, Mapping) or len(domain) != 1:
            raise UserError(f"{self.source}: {where} is {domain!r}; {expected}")
        kind, values = next(iter(domain.items()))
        if kind not in KINDS:
            raise UserError(f"{self.source}: {where}: unknown kind {kind!r}; {nearest(str(kind), KINDS)}")
        if not isinstance(values, list) or not values:
            state = "is empty" if values == [] else f"is {values!r}"
            raise UserError(f"{self.source}: {where}.{kind} {state}; give a list of one value or more")
        if kind in ("grid", "choice"):
            return
        bounds = [number for value in values if (number := _number(value)) is not None]
        if not len(values) == len(bounds) == 2 or bounds[0] >= bounds[1]:
            raise UserError(f"{self.source}: {where}.{kind} is {values!r}; expected two numbers, the lower one first")
        if kind == "loguniform" and bounds[0] <= 0:
            raise UserError(f"{self.source}: {where}.loguniform is {values!r}; expected bounds above 0")

    def _check_bounds(self, base: Mapping[str, Any]) -> None:
        """Check what no single trial shows: all values of a choice, and both bounds of a range."""
        first = next(self._points())
        for key in self._random_keys():
            ((kind, values),) = self.config.parameters[key].items()
            for value in values if key != DATASET else ():
                point = {name: other for name, other in first.items() if name != DATASET} | {key: value}
                recipe = self._build(_merged(base, point), f"parameters.{key}.{kind}")
                self._check_backbones([recipe.model.backbone])

    def _check_backbones(self, backbones: list[str]) -> None:
        for backbone in dict.fromkeys(backbones):
            try:
                check_name(backbone)
            except UserError as error:
                raise UserError(f"{self.source}: {error}") from None

    def _build(self, values: Mapping[str, Any], where: str) -> Recipe:
        return from_mapping(Recipe, values, f"{self.source}: {where}")


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
            return f"tune_spaces/{path.name}", path.read_text()
    file = Path(name).expanduser()
    if file.is_file():
        return name, file.read_text()
    raise UserError(f"--space {name}: neither a file nor a space in tune_spaces/; {nearest(name, space_names())}")


def _draw(generator: random.Random, kind: str, values: list[Any]) -> Any:
    if kind == "choice":
        return generator.choice(values)
    low, high = (float(value) for value in values)
    if kind == "uniform":
        return generator.uniform(low, high)
    return math.exp(generator.uniform(math.log(low), math.log(high)))


def _number(value: Any) -> float | None:
    # YAML 1.1 reads 1e-4 as text.
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
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


def _get(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())
