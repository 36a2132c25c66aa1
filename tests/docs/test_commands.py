"""Tests that the command line accepts every landmark command in README.md and docs/."""

import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from landmark.cli import COMMANDS, defaults
from landmark.cli.completion import SHELLS
from landmark.config import UserError

ROOT = Path(__file__).parent.parent.parent
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("", "sh", "bash", "console", "shell")
"""Languages of code blocks that may contain command lines."""
COMMAND = re.compile(r"(?:^(?:\$ )?landmark|\bpython -m landmark(?=[. ]))(?P<rest>.*)$")
TERMINATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>&1"}
"""Words that end the arguments of a command in a shell."""
ELLIPSES = ("…", "...")
GLOBAL = ("--help", "-h", "--help-all", "--version", "--json", "-q", "-v", "--quiet", "--verbose")


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and text of each line in shell code blocks; continued lines are joined."""
    language, number, joined, first = None, 0, "", 0
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```\s*([\w-]*)", line)
        if fence:
            language = fence[1] if language is None else None
            continue
        if language not in SHELL:
            continue
        first = first if joined else number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1].rstrip() + " "
            continue
        yield first, joined
        joined = ""


def words_of(line: str) -> list[str] | None:
    """Return the arguments of a landmark command line, or None for another line."""
    found = COMMAND.search(line)
    if found is None:
        return None
    rest = found["rest"]
    if rest.startswith("."):  # python -m landmark.tune
        module, _, rest = rest[1:].partition(" ")
        rest = f"{module} {rest}"
    elif rest[:1] not in ("", " "):  # landmark-ray and the like
        return None
    try:
        words = shlex.split(rest, comments=True)
    except ValueError:
        return None
    words = words[
        : next((index for index, word in enumerate(words) if word in TERMINATORS or word.startswith(">")), None)
    ]
    if words and words[0].endswith(":"):  # landmark train: error: ...
        return None
    return words


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Yield the file and line of each command line, and its arguments."""
    for file in FILES:
        if file.is_file():
            for number, line in blocks(file.read_text()):
                words = words_of(line)
                if words is not None:
                    yield f"{file.relative_to(ROOT)}:{number}", words


def problem(words: list[str]) -> str | None:
    """Return the error of the command line for these arguments, or None if it accepts them."""
    if not words or words[0] in (*GLOBAL, "COMMAND"):
        return None
    if words[0] == "completion":
        return None if words[1:] in [[shell] for shell in SHELLS] else "completion needs the name of a shell"
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    if name not in COMMANDS:
        return f"no such command: {name}"
    arguments, shortened = [], False
    pending = iter(words[len(name.split()) :])
    for word in pending:
        if word in ELLIPSES:
            shortened = True
        elif word.partition("=")[0] in GLOBAL or word.startswith("[OPTIONS"):
            continue
        elif word == "--config":
            shortened = next(pending, None) is not None
        elif word in ("--space", "--recipe"):
            value = next(pending, "")
            shipped = {"--space": "small", "--recipe": "modern"}[word]
            arguments += [word, value if re.fullmatch(r"[a-z_]+", value) else shipped]
        else:
            arguments.append(word)
    try:
        COMMANDS[name].parser().parse(arguments)
    except UserError as error:
        missing = re.search(r"is missing|no source is set|expected --run FOLDER", str(error))
        return None if shortened and missing else str(error)
    return None


@pytest.fixture(autouse=True)
def no_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the functions that read datasets and runs: those of the examples do not exist."""
    monkeypatch.setattr(defaults, "recipe_for", lambda *_, **__: ("modern", "an example"))
    resume = types.SimpleNamespace(recorded_config=lambda run: None)
    monkeypatch.setitem(sys.modules, "landmark.training.resume", resume)


def test_every_documented_command_line_is_accepted() -> None:
    found = list(command_lines())
    assert len(found) > 30
    errors = [
        f"{location}: landmark {' '.join(words)}: {text}" for location, words in found if (text := problem(words))
    ]
    assert errors == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("landmark train d --no-such-option 1", "unknown option '--no-such-option'"),
        ("$ landmark tune d", "--space is missing"),
        ("landmark trian d", "no such command: trian"),
        ("ray job submit --address A -- python -m landmark.tune --dataset d", "--space is missing"),
        ("landmark predict runs/a photo.jpg | head", None),
        ("landmark tune … --space space.yaml", None),
        ("landmark recipes modern > mine.yaml  # a copy", None),
    ],
)
def test_a_line_is_parsed_as_in_a_shell(line: str, expected: str | None) -> None:
    words = words_of(line)
    assert words is not None
    text = problem(words)
    assert (text is None) == (expected is None) and (expected or "") in (text or "")


def test_continued_lines_are_joined_and_output_is_ignored() -> None:
    text = "```sh\nlandmark train d \\\n    --epochs 3\n```\n```yaml\nlandmark train\n```\n"
    assert list(blocks(text)) == [(2, "landmark train d --epochs 3")]
    assert words_of("landmark train: error: no resources") is None and words_of("see landmark train") is None
