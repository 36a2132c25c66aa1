"""Help: the list of commands, a command on one screen, all of its options."""

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from landmark.cli.options import Option, options_of
from landmark.config import UserError, nearest

if TYPE_CHECKING:
    from landmark.cli.commands import Command

WIDTH = 118
WIDEST = 16
GLOBAL = (
    ("--config FILE", "YAML file with values for these options, such as the config.yaml of a run"),
    ("--recipe NAME", "recipe that sets the defaults: see landmark recipes, or a YAML file"),
    ("--json", "print the result as one JSON object on stdout, and nothing else"),
    ("-q, -v", "print warnings and errors only; print more details"),
)
"""Options that are not fields of a config."""


def program_help(commands: Mapping[str, "Command"]) -> str:
    """Return the list of commands."""
    width = max(map(len, commands)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in commands.items()]
    return "\n".join(
        [
            "usage: landmark COMMAND [ARGUMENTS] [OPTIONS]",
            "",
            "Train, search, evaluate and use landmark recognition models on a laptop or a Ray cluster.",
            "",
            "commands:",
            *lines,
            f"  {'completion':{width}}print a completion script for bash, zsh or fish",
            "",
            "landmark COMMAND --help shows examples and the common options.",
        ]
    )


def group_help(group: str, commands: Mapping[str, "Command"]) -> str:
    """Return the list of a group's commands, such as those of `landmark cluster`."""
    lines = [f"  {name:18}{command.summary}" for name, command in commands.items() if name.startswith(f"{group} ")]
    return "\n".join([f"usage: landmark {group} ACTION [OPTIONS]", "", *lines])


def command_help(command: "Command") -> str:
    """Return a command's usage, examples and common options, at most 40 lines."""
    options = shown_options(command)
    by_name = {name: option for option in options for name in (option.flag, option.short) if name}
    rows = [(_signature(by_name[name], WIDEST), first_sentence(by_name[name])) for name in command.common]
    rows += [row for row in GLOBAL if row[0].split()[0] != "--recipe" or command.default is not None]
    examples = [f"  {line}" for line in command.examples]
    more = ", ".join(groups(options))
    return "\n".join(
        [
            f"usage: landmark {' '.join(filter(None, [command.name, command.usage, '[OPTIONS]']))}",
            "",
            f"{command.summary[0].upper()}{command.summary[1:]}.",
            "",
            "examples:",
            *examples,
            "",
            "common options:",
            *_table(rows),
            "",
            *textwrap.wrap(
                f"--help-all lists all {len(options)} options" + (f", --help-all=GROUP one of: {more}" if more else ""),
                WIDTH,
            ),
        ]
    )


def long_help(command: "Command", group: str = "") -> str:
    """Return all options of a command, or those of a group; raises UserError for an unknown group."""
    options = shown_options(command)
    known = groups(options)
    if group and group not in known:
        raise UserError(f"--help-all={group}: no such group of options; {nearest(group, known)}")
    parts = []
    for name in sorted({option.group for option in options}):
        if group and name != group and not name.startswith(f"{group}."):
            continue
        rows = [(_signature(option), option.description()) for option in options if option.group == name]
        parts.append("\n".join([f"{name or 'command'} options:", *_table(rows)]))
    if not group:
        parts.append("\n".join(["global options:", *_table(GLOBAL)]))
    return (
        f"usage: landmark {command.name} {command.usage} [OPTIONS]\n\n{inspect.getdoc(command.config)}\n\n"
        + "\n\n".join(parts)
    )


def shown_options(command: "Command") -> list[Option]:
    """Return a command's options with the defaults that it has without any argument."""
    return options_of(command.config, command.shown() if command.shown is not None else None)


def groups(options: Sequence[Option]) -> list[str]:
    """Return the first parts of the options' groups, sorted."""
    return sorted({option.group.partition(".")[0] for option in options if option.group})


def first_sentence(option: Option) -> str:
    """Return what the short help says of an option: its first sentence and the default."""
    text = option.description()
    default = re.search(r" \[(?:default: [^\]]*|required)\]$", text)
    sentence = re.split(r"(?<=[a-z0-9)])\. |[;:] ", text.removesuffix(default[0]) if default else text)[0].rstrip(".")
    return f"{sentence}{default[0] if default else ''}"


def _signature(option: Option, widest: int | None = None) -> str:
    """Return an option's flag and what its value looks like; choices wider than `widest` are shown as NAME."""
    name = option.short or option.flag
    if option.short == "-o":
        name = "-o, --output"
    kind = "NAME" if widest is not None and len(option.kind) > widest else option.kind
    return f"{name} {kind}".strip()


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    column = min(34, max(len(name) for name, _ in rows) + 2)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - column - 2, break_on_hyphens=False) or [""]
        if len(name) > column - 2:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:{column}}{wrapped[0]}")
        lines += [f"  {'':{column}}{line}" for line in wrapped[1:]]
    return lines


def as_data(command: "Command") -> dict[str, Any]:
    """Return a command's help as plain values, for generated documentation."""
    return {
        "name": command.name,
        "usage": f"landmark {command.name} {command.usage}".strip(),
        "summary": command.summary,
        "examples": list(command.examples),
        "options": [
            {"flag": option.flag, "short": option.short, "type": option.kind, "text": option.description()}
            for option in shown_options(command)
        ],
    }
