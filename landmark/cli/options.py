"""The options of a command, read from the fields of its config: flag, type, default, description."""

import ast
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

SHORT = {
    "--lr": "optimizer.lr",
    "--batch-size": "loader.batch_size",
    "--model": "model.backbone",
    "--weights": "model.weights",
    "--opt": "optimizer.name",
    "--sched": "schedule.name",
    "--img-size": "loader.image_size",
    "--amp": "compute.amp",
    "--epochs": "epochs",
    "--seed": "seed",
    "--num-workers": "workers.count",
    "--address": "cluster.address",
    "--cache": "loader.cache",
    "--cache-gib": "loader.cache_gib",
    "--cache-format": "loader.cache_format",
}
"""Short flags (timm's and Ray's names) -> the field that they set, in a config that has it, or in the recipe of one."""
VARIADIC = -1
"""Number of values of an option that takes any number of them."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Option:
    """One option of a command."""

    flag: str
    """Its flag, such as --loader.batch-size."""
    short: str | None
    """Short flag for the same option, if there is one."""
    kind: str
    """What a value looks like, for help: INT, FLOAT, TEXT, {a,b}; empty for a switch."""
    values: int
    """Number of values that follow the flag; VARIADIC for any number."""
    default: Any
    """Default value; dataclasses.MISSING for a required option."""
    text: str
    """Description, one paragraph."""

    @property
    def group(self) -> str:
        """What its name begins with, such as loader or model.head; empty for an option of the command itself."""
        return self.flag.removeprefix("--").removeprefix("recipe.").rpartition(".")[0].replace("-", "_")

    def description(self) -> str:
        """Return the description with the effective default: the value, or what the description says of an unset option."""
        if self.default is dataclasses.MISSING:
            return f"{self.text} [required]"
        if self.default is None or self.default == () or self.default == {}:
            return self.text
        text = re.sub(r" \[default: [^\]]*\]$", "", self.text)
        if self.kind == "":
            return f"{text} [default: on]" if self.default else text
        shown = " ".join(map(str, self.default)) if isinstance(self.default, tuple | list) else self.default
        return f"{text} [default: {shown}]"


def options_of(kind: type, default: Any = None) -> list[Option]:
    """Return the options of a config dataclass; `default`: an instance whose values are shown as defaults."""
    return list(_options(kind, default, "", short_flags(kind)))


def short_flags(kind: type) -> dict[str, str]:
    """Return the short flags that a config has: short flag -> full flag."""
    full = dict(option_fields(kind))
    found = {}
    for short, path in SHORT.items():
        for name in (path, f"recipe.{path}"):
            if name in full and flag_of(name) != short:
                found[short] = flag_of(name)
                break
    for name, hint in full.items():
        found |= {alias: flag_of(name) for alias in _aliases(hint)}
    if "output" in full:
        found["-o"] = "--output"
    return found


def flag_of(name: str) -> str:
    """Return the flag of a dotted field name."""
    return f"--{name.replace('_', '-')}"


def switched_off(flag: str) -> str:
    """Return the flag that turns a switch off.

    >>> switched_off("--compute.compile")
    '--compute.no-compile'
    """
    group, _, last = flag.removeprefix("--").rpartition(".")
    return f"--{group}.no-{last}" if group else f"--no-{last}"


def option_fields(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and type of each field that is not a dataclass itself."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        bare = _bare(hints[field.name])
        if dataclasses.is_dataclass(bare):
            yield from option_fields(typing.cast(type, bare), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


def _options(kind: type, default: Any, prefix: str, shorts: Mapping[str, str]) -> Iterator[Option]:
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = field_texts(kind)
    by_flag = {full: short for short, full in shorts.items()}
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        bare = _bare(hint)
        value = getattr(default, field.name, dataclasses.MISSING) if default is not None else _default(field)
        if _default(field) is dataclasses.MISSING:
            value = dataclasses.MISSING  # also if a recipe's defaults have a placeholder for it
        if dataclasses.is_dataclass(bare):
            inner = None if value is dataclasses.MISSING else value
            yield from _options(typing.cast(type, bare), inner, f"{name}.", shorts)
            continue
        shown, values = _shape(bare)
        yield Option(
            flag=flag_of(name),
            short=by_flag.get(flag_of(name)),
            kind=shown,
            values=values,
            default=value,
            text=texts.get(field.name, ""),
        )


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _bare(hint: Any) -> Any:
    return hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint


def _aliases(hint: Any) -> list[str]:
    if typing.get_origin(hint) is not typing.Annotated:
        return []
    return [alias for extra in hint.__metadata__ for alias in getattr(extra, "aliases", None) or ()]


def _shape(hint: Any) -> tuple[str, int]:
    """Return how a value of a type is shown, and how many values an option of it takes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        shapes = [_shape(argument) for argument in arguments if argument is not type(None)]
        return "|".join(dict.fromkeys(shown for shown, _ in shapes)), shapes[0][1]
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}", 1
    if origin in (list, dict):
        return f"{'NAME URI' if origin is dict else _shape(arguments[0])[0]} ...", VARIADIC
    if origin is tuple:
        shown = _shape(arguments[0])[0]
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"{shown} ...", VARIADIC
        return " ".join([shown] * len(arguments)), len(arguments)
    if hint is bool:
        return "", 0
    return {int: "INT", float: "FLOAT", str: "TEXT"}.get(hint, "TEXT"), 1


@functools.cache
def field_texts(kind: type) -> dict[str, str]:
    """Return the text below each field of a dataclass, those of its base classes included."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= _module_texts(base.__module__).get(base.__name__, {})
    return texts


@functools.cache
def _module_texts(module: str) -> dict[str, dict[str, str]]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found.setdefault(node.name, {})
        for field, text in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                texts[field.target.id] = " ".join(text.value.value.split())
    return found
