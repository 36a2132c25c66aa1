"""A command line becomes a config: positional arguments, short flags, `--config`, `--recipe`, and tyro for the values."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import tyro

from landmark.cli.foreign import FOREIGN
from landmark.cli.messages import one_line, unknown_flag
from landmark.cli.options import VARIADIC, Option, options_of, switched_off
from landmark.config import UserError, from_mapping, parse_mapping
from landmark.recipes.files import named_text

T = TypeVar("T")
Defaults = Callable[[str | None, Sequence[str]], Any]
FromFile = Callable[[str, Sequence[str]], Any]


@dataclasses.dataclass(kw_only=True, frozen=True)
class Parser(Generic[T]):
    """How the arguments of a command become its config."""

    kind: type[T]
    """The config dataclass."""
    program: str
    """Name of the command in messages."""
    positional: tuple[str, ...] = ()
    """Flags whose values may be given without the flag, in this order; the last one takes all that are left if it is variadic."""
    default: Defaults | None = None
    """Makes the defaults of the other options from the value of `--recipe` and the arguments."""
    from_file: FromFile | None = None
    """Makes the defaults from the file that `--config` names and the arguments."""
    rewrite: Callable[[list[str]], list[str]] | None = None
    """Changes the arguments before anything else reads them."""

    def parse(self, arguments: Sequence[str]) -> T:
        """Return the config; raises UserError with one line."""
        options = options_of(self.kind)
        full = self.expand(arguments, options)
        rest, file = take_option(full, "--config")
        recipe = None
        if self.default is not None:
            rest, recipe = take_option(rest, "--recipe")
        if file and recipe:
            raise UserError("--config and --recipe both set the defaults; remove one of them")
        base: T | None = None
        if file:
            if self.from_file is not None:
                base = self.from_file(file, rest)
            else:
                base = from_mapping(self.kind, file_values(self.kind, file, rest), file)
        elif self.default is not None:
            base = self.default(recipe, rest)
        shown = io.StringIO()
        try:
            with contextlib.redirect_stderr(shown):
                if base is None:
                    return tyro.cli(self.kind, prog=self.program, args=rest)
                return tyro.cli(self.kind, prog=self.program, args=rest, default=base)
        except SystemExit:
            raise UserError(self._as_given(one_line(shown.getvalue()), arguments, options)) from None

    def expand(self, arguments: Sequence[str], options: Sequence[Option]) -> list[str]:
        """Return the arguments with full flags only: short flags replaced, positional arguments named.

        Raises UserError for an unknown flag and for an argument that belongs to no option.
        """
        pending = list(self.rewrite(list(arguments)) if self.rewrite is not None else arguments)
        by_flag = {name: option for option in options for name in _names(option)}
        known = {*by_flag, "--config", *(("--recipe",) if self.default is not None else ())}
        if line := unknown_flag(pending, known):
            raise UserError(line)
        given = {argument.partition("=")[0].replace("_", "-") for argument in pending}
        places = [flag for flag in self.positional if not given & set(_names(by_flag[flag]))]
        full: list[str] = []
        named: dict[str, list[str]] = {}
        position = 0
        while position < len(pending):
            argument = pending[position]
            position += 1
            if not _is_flag(argument):
                if not places:
                    raise UserError(_unexpected(argument, pending))
                place = places[0] if by_flag[places[0]].values == VARIADIC else places.pop(0)
                named.setdefault(place, []).append(argument)
                continue
            name, equals, value = argument.partition("=")
            name = name.replace("_", "-")
            option = by_flag.get(name)
            if option is None:  # --config and --recipe
                full.append(name)
                taken = [value] if equals else _until_flag(pending[position : position + 1])
            else:
                full.append(name if name == switched_off(option.flag) else option.flag)
                most = len(pending) if option.values == VARIADIC else option.values
                taken = [value] if equals else _until_flag(pending[position : position + most])
                if not taken and option.flag.endswith("compute.amp"):  # timm's --amp has no value
                    full.append("auto")
            full += taken
            position += 0 if equals else len(taken)
        for place, values in named.items():
            full += [place, *values]
        return full

    def _as_given(self, line: str, arguments: Sequence[str], options: Sequence[Option]) -> str:
        """Return a message that names the flags as they were given: short or positional."""
        for option in options:
            if option.short is not None and any(a.partition("=")[0] == option.short for a in arguments):
                line = re.sub(rf"{re.escape(option.flag)}(?![\w.-])", option.short, line)
        for flag in self.positional:
            line = line.replace(f"{flag} is missing", f"{flag.removeprefix('--').upper()} is missing")
        return line


def parse(
    kind: type[T],
    arguments: Sequence[str],
    program: str,
    default: Defaults | None = None,
    from_file: FromFile | None = None,
) -> T:
    """Parse command-line arguments into a config; raises UserError with one line."""
    return Parser(kind=kind, program=program, default=default, from_file=from_file).parse(arguments)


def file_values(kind: type, file: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values of a config file. Required keys that it lacks are those of the command line."""
    values = parse_mapping(named_text(file, "config file"), file)
    for field in dataclasses.fields(kind):
        flag = f"--{field.name.replace('_', '-')}"
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values and flag in arguments:
            given = _until_flag(arguments[arguments.index(flag) + 1 :])
            values[field.name] = given[0] if field.type is str and given else given
    return values


def take_option(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """Return the arguments without `flag VALUE` or `flag=VALUE`, and the value."""
    rest, value = [], None
    pending = iter(arguments)
    for argument in pending:
        if argument == flag:
            value = next(pending, None)
            if value is None:
                raise UserError(f"{flag} needs a value; give a name or a file")
        elif argument.startswith(f"{flag}="):
            value = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return rest, value


def _names(option: Option) -> list[str]:
    names = [option.flag, *([option.short] if option.short else [])]
    return [*names, switched_off(option.flag)] if option.values == 0 else names


def _is_flag(argument: str) -> bool:
    return re.fullmatch(r"--?[A-Za-z][^\s]*", argument) is not None


def _until_flag(arguments: Sequence[str]) -> list[str]:
    end = next((place for place, argument in enumerate(arguments) if _is_flag(argument)), len(arguments))
    return list(arguments[:end])


def _unexpected(argument: str, arguments: Sequence[str]) -> str:
    before = arguments[arguments.index(argument) - 1].partition("=")[0] if arguments.index(argument) else ""
    if before in ("--resume", "--pretrained") and before in FOREIGN:
        return f"unexpected value {argument!r} of {before}; use {FOREIGN[before]}"
    return f"{argument!r} belongs to no option; see --help"
