"""`landmark recipes` and `landmark spaces`: list the built-in recipes and search spaces, or print one as YAML."""

from landmark.config import RecipesConfig, SpacesConfig
from landmark.recipes import recipe_names, recipe_text
from landmark.search.spaces.space import Space, space_names


def recipes(config: RecipesConfig) -> list[str] | str:
    """Print the names and descriptions of the recipes, or one recipe."""
    if config.name is None:
        return _list({name: recipe_text(name) for name in recipe_names()}, "recipe")
    text = recipe_text(config.name)
    print(text, end="")
    return text


def spaces(config: SpacesConfig) -> list[str] | str:
    """Print the names and descriptions of the search spaces, or one space."""
    if config.name is None:
        return _list({name: Space.load(name).text for name in space_names()}, "space")
    text = Space.load(config.name).text
    print(text, end="")
    return text


def _list(texts: dict[str, str], kind: str) -> list[str]:
    """Print each name with the first sentence of its file's comment."""
    width = max(map(len, texts)) + 2
    for name, text in texts.items():
        comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        print(f"{name:{width}}{comment.partition('. ')[0].rstrip('.')}.")
    print(f"landmark {kind}s NAME prints one of them.")
    return list(texts)
