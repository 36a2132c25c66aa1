"""Tests that each message on the Troubleshooting page occurs in the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from landmark.cli import main
from landmark.cli.troubleshooting import link_of

ROOT = Path(__file__).parent.parent.parent
MIN_FRAGMENT = 10
"""Fragments of a message with at least this many characters must occur in the code."""


def strings() -> Iterator[str]:
    """Yield the strings of all modules. A value in an f-string separates two strings."""
    for file in sorted((ROOT / "landmark").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "\0".join(str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def messages() -> list[str]:
    """Return the messages on the page."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r"^```text\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)


def test_each_message_is_in_the_code() -> None:
    code = "\n".join(strings())
    found = messages()
    assert len(found) > 40
    parts = {
        message: [text for part in message.split("…") if len(text := part.strip(" ;:()'")) >= MIN_FRAGMENT]
        for message in found
    }
    assert [message for message, texts in parts.items() if not all(text in code for text in texts)] == []


def test_each_entry_has_its_own_anchor() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### .*$", page, re.MULTILINE)
    anchors = re.findall(r"^### .* \{ #([a-z0-9-]+) \}$", page, re.MULTILINE)
    assert len(headings) == len(anchors) == len(set(anchors)) == len(messages())


def test_each_message_links_to_its_entry() -> None:
    anchors = re.findall(
        r"^### .* \{ #([a-z0-9-]+) \}$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE
    )
    links = [link_of(message.replace("…", "some/file")) for message in messages()]
    assert links == [f"docs/troubleshooting.md#{anchor}" for anchor in anchors]
    assert link_of("another message") is None


def test_an_error_ends_with_the_link(capsys, tmp_path) -> None:
    assert main(["report", str(tmp_path / "none"), "-o", str(tmp_path)]) == 1
    missing = capsys.readouterr().err
    assert main(["train", str(tmp_path), "--recipe", "modern", "--config", "file.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("remove one of them (see docs/troubleshooting.md#config-and-recipe)")
    assert len(missing.splitlines()) == 1
