"""The pages of the command line, the configuration and the search space."""

import dataclasses
import re
import typing
from collections.abc import Iterable

import landmark.config
from landmark.cli import COMMANDS
from landmark.cli.commands import Command
from landmark.cli.completion import SHELLS
from landmark.cli.help import GLOBAL, as_data, shown_options
from landmark.cli.options import Option, field_texts, options_of
from scripts.reference.markdown import anchor, code, fenced, table
from scripts.reference.source import ROOT, comment_of, docstring_of, first


def command_line() -> str:
    """Return the page of the commands and their options."""
    parts = [
        "# Command line",
        "`landmark COMMAND --help` prints examples and the common options of a command on one screen. `--help-all` prints all "
        "of them, `--help-all=GROUP` those of a group. `python -m landmark` is the same program; `python -m landmark.train` "
        "and `python -m landmark.tune` are `landmark train` and `landmark tune`.",
        "Options of every command:",
        table(("Option", "Meaning"), [(code(flag), text) for flag, text in GLOBAL]),
        "`--recipe` is an option of `train` and `tune` only. A switch such as `--compute.compile` is turned off by "
        "`--compute.no-compile`. A short flag and its full flag are the same option: `--lr 0.1` is `--optimizer.lr 0.1`.",
        table(
            ("Command", "Purpose"),
            [(f"[`landmark {name}`](#{anchor(name)})", command.summary) for name, command in COMMANDS.items()]
            + [("[`landmark completion`](#completion)", f"print a completion script for {', '.join(SHELLS)}")],
        ),
    ]
    parts += [command_section(command) for command in COMMANDS.values()]
    parts += [
        "## landmark completion { #completion }",
        f"`landmark completion {{{','.join(SHELLS)}}}`\n\nPrint a completion script for a shell.",
        fenced("source <(landmark completion bash)"),
    ]
    return "\n\n".join(parts)


def command_section(command: Command) -> str:
    """Return the section of one command."""
    data = as_data(command)
    parts = [
        f"## landmark {command.name} {{ #{anchor(command.name)} }}",
        f"`{data['usage']} [OPTIONS]`",
        f"{data['summary'][0].upper()}{data['summary'][1:]}.",
        fenced("\n".join(data["examples"])),
    ]
    options = shown_options(command)
    for group in sorted({option.group for option in options}):
        if group:
            parts.append(
                f"### {group} options {{ #{anchor(command.name)}-{group.replace('_', '-').replace('.', '-')} }}"
            )
        rows = [option_row(option) for option in options if option.group == group]
        parts.append(table(("Option", "Value", "Default", "Meaning"), rows))
    return "\n\n".join(parts)


def option_row(option: Option) -> tuple[str, str, str, str]:
    """Return an option as a row: flags, value, default, meaning."""
    flags = code(option.flag) + (f", {code(option.short)}" if option.short else "")
    text, default = text_and_default(option)
    return flags, shown_kind(option) if option.values else "switch", default, text


def text_and_default(option: Option) -> tuple[str, str]:
    """Return an option's description without its default, and the default."""
    text = option.description()
    match = re.search(r" \[(?:default: ([^\]]*)|(required))\]$", text)
    if match is None:
        return text, "off" if option.values == 0 else ""
    required = match[1] in (None, "tyro.MISSING")
    return text[: match.start()], "required" if required else match[1] or "none"


def shown_kind(option: Option) -> str:
    """Return what a value looks like, for a table: choices as a list, alternatives with `or`."""
    if option.kind.startswith("{"):
        choices = ", ".join(code(choice) for choice in option.kind.split()[0].strip("{}").split(","))
        return f"{choices} ..." if option.kind.endswith("...") else choices
    return option.kind.replace("|", " or ") or "true or false"


def shown_key(option: Option) -> str:
    """Return what the value of a key in a file looks like."""
    mapping = "NAME URI ..."  # how the command line takes one
    return {mapping: "mapping", f"{mapping} ...": "list of mappings"}.get(option.kind, shown_kind(option))


def configuration() -> str:
    """Return the page of the keys of configuration files."""
    groups = config_groups()
    parts = [
        "# Configuration files",
        "`--config FILE` reads the options of a command from a YAML file. The keys are the options' names with underscores, "
        "nested by group: `--loader.batch-size 32` is `loader: {batch_size: 32}`. Options on the command line override the "
        "file. The config.yaml of a run is such a file. Unknown keys and repeated keys are errors.",
        fenced(
            "epochs: 20\nmodel: {backbone: resnet50}\noptimizer: {name: adamw, lr: 0.001}\nloader: {batch_size: 64}",
            "yaml",
        ),
        "A [recipe](../how-to/recipes.md) has the keys of [Recipe](#recipe). A "
        "[search space](search-space.md) has keys of its own.",
        "## Commands and their groups",
    ]
    rows = []
    for name, command in COMMANDS.items():
        nested = [f"[{field}](#{kind.__name__.lower()})" for field, kind in nested_fields(command.config)]
        rows.append((f"[{name}](#{command.config.__name__.lower()})", ", ".join(nested) or "-"))
    parts.append(table(("Command", "Groups"), rows))
    for kind in dict.fromkeys([*(command.config for command in COMMANDS.values()), landmark.config.Recipe, *groups]):
        options = [option for option in options_of(kind) if "." not in option.flag]
        parts += [f"## {kind.__name__} {{ #{kind.__name__.lower()} }}", docstring_of(kind)]
        nested = nested_fields(kind)
        if options:
            parts.append(keys_table(options))
        if nested:
            texts = field_texts(kind)
            parts.append(
                table(
                    ("Group", "Keys", "Meaning"),
                    [
                        (
                            code(field),
                            f"[{inner.__name__}](#{inner.__name__.lower()})",
                            texts.get(field, "") or first(inner),
                        )
                        for field, inner in nested
                    ],
                )
            )
    return "\n\n".join(parts)


def keys_table(options: Iterable[Option]) -> str:
    """Return a table of configuration keys."""
    rows = []
    for option in options:
        text, default = text_and_default(option)
        default = str(option.default).lower() if isinstance(option.default, bool) else default
        rows.append((code(option.flag.removeprefix("--").replace("-", "_")), shown_key(option), default, text))
    return table(("Key", "Value", "Default", "Meaning"), rows)


def config_groups() -> list[type]:
    """Return the dataclasses below the commands' configs, each once."""
    found: dict[type, None] = {}

    def visit(kind: type) -> None:
        for _, inner in nested_fields(kind):
            found.setdefault(inner)
            visit(inner)

    for command in COMMANDS.values():
        visit(command.config)
    return list(found)


def nested_fields(kind: type) -> list[tuple[str, type]]:
    """Return the fields of a config that are dataclasses themselves."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    return [(name, hints[name]) for name in names if dataclasses.is_dataclass(hints[name])]


def search_space() -> str:
    """Return the page of search spaces."""
    config = landmark.config
    parts = [
        "# Search space",
        "A search space is a YAML file for [`landmark tune --space`](command-line.md#tune). The how-to guide "
        "[Search spaces](../how-to/search-spaces.md) has examples.",
        "## Spaces that come with landmark",
        table(
            ("Space", "Purpose"),
            [(code(file.stem), comment_of(file)) for file in sorted((ROOT / "tune_spaces").glob("*.yaml"))],
        ),
        "## Keys { #keys }",
        docstring_of(config.SpaceConfig),
        keys_table([option for option in options_of(config.SpaceConfig) if "." not in option.flag]),
    ]
    for field, kind in nested_fields(config.SpaceConfig):
        parts += [f"## {field}", docstring_of(kind), keys_table(options_of(kind))]
    parts += [
        "## Domains",
        table(
            ("Domain", "Meaning"),
            [
                ("`{grid: [a, b]}`", "Each value, crossed with all other grids and with each random sample."),
                ("`{choice: [a, b]}`", "One value, sampled uniformly."),
                ("`{int: [low, high]}`", "An integer, both ends included."),
                ("`{uniform: [low, high]}`", "A number, sampled uniformly."),
                ("`{loguniform: [low, high]}`", "A number, sampled uniformly on a logarithmic scale."),
                (
                    "`{by: KEY, VALUE: …, default: …}`",
                    "A domain or a value that depends on another searched key. Without a matching case, the recipe's value.",
                ),
            ],
        ),
    ]
    return "\n\n".join(parts)
