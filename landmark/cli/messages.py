"""One line for an option or a value that a command does not accept."""

import difflib
import re
from collections.abc import Collection, Sequence

from landmark.cli.foreign import foreign_option, misspelled_option
from landmark.config import nearest
from landmark.config.renamed import current_flag

SHOWN = 4
"""Options of a group that a message lists."""
KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "text", "PATH": "a path", "{None}": "None"}
"""Types as tyro names them."""


def unknown_flag(arguments: Sequence[str], known: Collection[str]) -> str | None:
    """Return one line for the first unknown flag among arguments, with the option that was probably meant, or None."""
    for argument in arguments:
        given = argument.partition("=")[0]
        flag = given.replace("_", "-")
        if not re.fullmatch(r"--?[A-Za-z][\w.-]*", flag) or flag in known:
            continue
        if (line := foreign_option(flag)) is not None:
            return line
        if (new := current_flag(flag)) in known:
            return f"'{given}' is now '{new}'"
        if (line := misspelled_option(flag, known)) is not None:
            return line
        return f"unknown option '{given}'; {_probable(flag, known)}"
    return None


def _probable(flag: str, known: Collection[str]) -> str:
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
        # A part of a name is short, and short words resemble each other by chance.
        close = [tails[name] for name in difflib.get_close_matches(flag.removeprefix("--"), tails, n=1, cutoff=0.75)]
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


def one_line(box: str) -> str:
    """Return the message of tyro's boxed error as one line that names the nearest valid option or choice."""
    title, text, hints = _read_box(box)
    if title == "Unrecognized options":
        given = text.partition(":")[2].replace(",", " ").split()
        return f"{given[0]!r} belongs to no option; see --help"
    if title == "Required options":
        flag = next((line.split()[0] for line in hints if line.startswith("--")), "an option")
        text = " ".join(line for line in hints[1:] if not line.startswith("--")).partition("(required)")[0].strip()
        return f"{flag} is missing: {text}"
    if choice := re.match(r"invalid choice '(.*?)' for argument '(--[\w.-]+)'\. Expected one of \((.*)\)", text):
        word, flag, valid = choice.groups()
        names = re.findall(r"'([^']*)'", valid)
        return f"{flag} is {word!r}; {nearest(word, names)}"
    return wrong_value(text) or "wrong arguments; see --help"


def _read_box(box: str) -> tuple[str, str, list[str]]:
    """Return the title, the first paragraph and the lines after it of an error that tyro draws as a box.

    Where the terminal has no line-drawing characters the box is a title and rows of hyphens.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╮╰╯ ") for line in plain.splitlines()]
    lines = ["─" if line and set(line) <= set("─- ") else line.strip("─ ") for line in lines]
    lines = [line for line in lines if line]
    while lines and lines[0] == "─":
        lines.pop(0)
    if not lines:
        return "", "", []
    paragraphs: list[list[str]] = [[]]
    for line in lines[1:]:
        if line == "─" or "helptext" in line:
            paragraphs.append([])
        elif "--help" not in line:
            paragraphs[-1].append(line)
    filled = [paragraph for paragraph in paragraphs if paragraph] or [[]]
    return lines[0], " ".join(filled[0]), [line for paragraph in filled for line in paragraph]
