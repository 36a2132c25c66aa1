"""The flags of a command, and one line for a flag or a value that is none of them."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

SHOWN = 4
"""Options of a group that a message lists."""
KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "text", "PATH": "a path", "{None}": "None"}
"""Types as tyro names them."""


def flags_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the flags that the fields of a config dataclass are set by, aliases included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        name = f"{prefix}{field.name.replace('_', '-')}"
        if typing.get_origin(hint) is typing.Annotated:
            for extra in hint.__metadata__:
                yield from getattr(extra, "aliases", None) or ()
            hint = hint.__origin__
        if dataclasses.is_dataclass(hint):
            yield from flags_of(hint, f"{name}.")
            continue
        yield f"--{name}"
        if hint is bool:
            group, _, last = name.rpartition(".")
            yield f"--{group}.no-{last}" if group else f"--no-{last}"


def unknown_flag(arguments: Sequence[str], known: Sequence[str]) -> str | None:
    """Return one line for the first unknown flag among arguments, with the flags that were probably meant, or None."""
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if re.fullmatch(r"--[A-Za-z][\w.-]*", flag) and flag not in {*known, "--help"}:
            return f"unknown option '{argument.partition('=')[0]}'; {_probable(flag, known)}"
    return None


def _probable(flag: str, known: Sequence[str]) -> str:
    switched_off = re.sub(r"^--no-(.+)\.([^.]+)$", r"--\1.no-\2", flag)
    if switched_off in known:
        return f"did you mean {switched_off!r}?"
    group = [other for other in known if other.startswith(f"{flag}.")]
    if group:
        more = f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
        return f"its options are {', '.join(group[:SHOWN])}{more}"
    last = [other for other in known if other.rpartition(".")[2] == flag.removeprefix("--")]
    close = last or difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
    if not close:
        tails = {other.rpartition(".")[2].removeprefix("--"): other for other in known}
        close = [tails[name] for name in difflib.get_close_matches(flag.removeprefix("--"), tails, n=1, cutoff=0.6)]
    return f"did you mean {close[0]!r}?" if close else "see --help"


def wrong_value(text: str) -> str:
    """Return tyro's message about a value as one line without Python's types: the flag, the value, what was expected.

    >>> wrong_value("--epochs: invalid literal for int() with base 10: 'many'")
    "--epochs is 'many'; expected a whole number"
    """
    text = re.sub(r"^Error parsing ((--\S+: )|\S+: )", r"\2", text)
    flag, _, problem = text.partition(": ")
    flag = flag.rpartition("/")[2]
    value = re.search(r"'([^']*)'\]?\.?$", problem)
    if match := re.match(r"no type matching (\S+) could be instantiated from \[(.*?)\]", problem):
        kinds = [KINDS.get(kind, kind.strip("{}")) for kind in match[1].split("|")]
        # `None` is how a setting is put back to its default, and comes last.
        kinds = sorted(dict.fromkeys(kinds), key=lambda kind: kind == "None")
        return f"{flag} is {match[2]}; expected {' or '.join(kinds)}"
    if value and problem.startswith("invalid literal for int()"):
        return f"{flag} is {value[1]!r}; expected a whole number"
    if value and problem.startswith("could not convert string to float"):
        return f"{flag} is {value[1]!r}; expected a number"
    if missing := re.match(r"Missing value for argument '([^']+)'", text):
        return f"{missing[1].rpartition('/')[2]} has no value; give one after it"
    return text
