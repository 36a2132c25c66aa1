"""Each message on the page Troubleshooting is one that the code has."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SHORTEST = 10
"""Characters of a part of a message that must be in the code."""


def strings() -> Iterator[str]:
    """Yield the strings of all modules; the values in f-strings are left out, and end a string."""
    for file in sorted((ROOT / "landmark").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "\0".join(str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def messages() -> list[str]:
    """Return the messages of the page."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r"^```text\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)


def test_each_message_is_in_the_code() -> None:
    code = "\n".join(strings())
    found = messages()
    assert len(found) > 40
    parts = {
        message: [own for part in message.split("…") if len(own := part.strip(" ;:()'")) >= SHORTEST]
        for message in found
    }
    assert [message for message, own in parts.items() if not all(part in code for part in own)] == []


def test_each_entry_has_its_own_anchor() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### .*$", page, re.MULTILINE)
    anchors = re.findall(r"^### .* \{ #([a-z0-9-]+) \}$", page, re.MULTILINE)
    assert len(headings) == len(anchors) == len(set(anchors)) == len(messages())
