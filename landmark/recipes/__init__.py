"""Built-in recipes by name (the YAML files in this package), and recipes in files of the user."""

import importlib.resources
from collections.abc import Mapping
from typing import Any

from landmark.config import Recipe, UserError, from_mapping, nearest, parse_mapping
from landmark.config.renamed import current_value
from landmark.recipes.files import built_in_or_named, yaml_names

FOLDER = importlib.resources.files(__name__)
"""The built-in recipes."""


def recipe_names() -> list[str]:
    """Return the names of the built-in recipes."""
    return yaml_names(FOLDER)


def recipe_values(name: str) -> dict[str, Any]:
    """Return the values of a recipe as nested keys. Other keys have the defaults of a recipe.

    name: a built-in recipe, or a YAML file. Raises UserError for an unknown name, and for an invalid key or value.
    """
    source, text = _read(name)
    values = parse_mapping(text, source)
    from_mapping(Recipe, values, source)
    return values


def recipe_text(name: str) -> str:
    """Return the YAML text of a recipe by its name or file. Raises UserError like `recipe_values`."""
    recipe_values(name)
    return _read(name)[1]


def recipe_file(name: str) -> str:
    """Return the YAML text of a built-in recipe without checking it."""
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(name: str) -> Recipe:
    """Return a recipe by its name or file. Raises UserError like `recipe_values`."""
    return from_mapping(Recipe, recipe_values(name), name)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested keys. Values of `over` replace values of `base`."""
    both = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], Mapping) and isinstance(over[key], Mapping):
            both[key] = merged(base[key], over[key])
    return both


def _read(name: str) -> tuple[str, str]:
    """Return the location and the text of a recipe."""
    name = current_value("--recipe", name, "command line")
    if (found := built_in_or_named(name, FOLDER, "landmark/recipes", "recipe")) is not None:
        return found
    raise UserError(f"recipe {name!r} is neither a file nor a built-in recipe; {nearest(name, recipe_names())}")
