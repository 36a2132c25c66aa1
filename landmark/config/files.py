"""Configs as YAML, with typed loading. Errors name the file, the key and the most similar valid key."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from landmark.config.errors import UserError, nearest
from landmark.config.renamed import VALUES, current_key, current_value, is_removed
from landmark.config.secrets import mask_credentials
from landmark.config.text import read_text

if TYPE_CHECKING:
    import pydantic

T = TypeVar("T")


def _new_adapter(kind: Any) -> "pydantic.TypeAdapter[Any]":
    import pydantic  # a third of the time of `--help`, which does not need it

    return pydantic.TypeAdapter(kind)


_adapter: Callable[[Any], "pydantic.TypeAdapter[Any]"] = functools.cache(_new_adapter)
"""pydantic's validator of a type. Creating one takes ten times as long as using it."""


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a config dataclass as nested plain values (tuples become lists)."""
    return _adapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: Any) -> str:
    """Return a config dataclass as YAML text that `parse_yaml` and `load_yaml` read back."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def to_stored_yaml(config: Any) -> str:
    """Return a config as `to_yaml` does, for a file: URIs carry no credentials."""
    return mask_credentials(to_yaml(config))


def load_yaml(kind: type[T], path: str | Path) -> T:
    """Read a config of type `kind` from a YAML file. Raises UserError with file and key."""
    return parse_yaml(kind, read_text(Path(path), str(path), "config file"), str(path))


def parse_yaml(kind: type[T], text: str, source: str) -> T:
    """Parse YAML text into a config of type `kind`. `source` is its name in errors."""
    return from_mapping(kind, parse_mapping(text, source), source)


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """Parse YAML text that contains a mapping at its top level."""
    try:
        values = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        if isinstance(error, yaml.reader.ReaderError):  # a character that YAML forbids
            where = f" line {text.count(chr(10), 0, error.position) + 1}:"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid YAML"
        raise UserError(f"{source}:{where} {problem}; expected 'key: value' lines") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply; expected 'key: value' lines") from None
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected 'key: value' lines at the top, got {type(values).__name__}")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that rejects repeated keys, and reports invalid values as YAML errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = key.tag, str(key.value)
            if name in seen and isinstance(key, yaml.ScalarNode) and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' occurs twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is not a valid {node.tag.rsplit(':', 1)[-1]}", node.start_mark
            ) from None


def from_mapping(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a config of type `kind` from nested plain values. Checks all keys and types.

    Raises UserError with the source, the dotted key, the expected value and the most similar valid key.
    """
    values = with_current_names(kind, values, source)
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{source}: {_explain(first)}") from None


def with_current_names(kind: Any, values: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """Return the values with the key names of this version. Raises UserError for a key that no version has."""
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    current = {}
    for given, value in values.items():
        if given not in fields and is_removed(kind.__name__, str(given), value, source):
            continue
        key = given if given in fields else str(current_key(f"{prefix}{given}", source)).removeprefix(prefix)
        if key not in fields:
            raise UserError(f"{source}: unknown key '{prefix}{given}'; {nearest(str(given), fields)}")
        if key in current or (key != given and key in values):
            raise UserError(f"{source}: '{prefix}{given}' is now '{prefix}{key}', and both are set; remove the first")
        nested = fields[key]
        if dataclasses.is_dataclass(nested) and isinstance(value, Mapping):
            current[key] = with_current_names(nested, value, source, f"{prefix}{key}.")
        elif key in VALUES:
            current[key] = current_value(f"{prefix}{key}", value, source)
        else:
            current[key] = value
    return current


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "literal_error":
        choices = [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"key '{key}' is {error['input']!r}; {nearest(str(error['input']), choices)}"
    if error["type"] == "value_error":
        return message
    if error["type"] == "missing":
        return f"key '{key}' is missing; add it"
    got = error["input"]
    return f"key '{key}' is {got!r}; {message[0].lower()}{message[1:]}"
