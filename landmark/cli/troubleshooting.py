"""Links from error messages to their entries on the documentation's page Troubleshooting."""

import functools
import importlib.resources
import json
import re

PAGE = "docs/troubleshooting.md"
SHORTEST = 10
"""Minimum length of a part of a message that identifies it, characters."""


def entries_of(page: str) -> dict[str, list[str]]:
    """Return the constant parts of each message on the page, by the anchor of its entry."""
    found = re.findall(r"^### [^\n]* \{ #([a-z0-9-]+) \}\n\n```text\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    return {
        anchor: [own for part in message.split("…") if len(own := part.strip(" ;:()'")) >= SHORTEST]
        for anchor, message in found
    }


def link_of(message: str) -> str | None:
    """Return the page and anchor of the entry that describes a message. The longest match wins. None if there is none."""
    matches = {
        anchor: sum(map(len, parts))
        for anchor, parts in _entries().items()
        if parts and re.search(".*".join(map(re.escape, parts)), message, re.DOTALL)
    }
    return f"{PAGE}#{max(matches, key=matches.__getitem__)}" if matches else None


@functools.cache
def _entries() -> dict[str, list[str]]:
    return json.loads((importlib.resources.files(__package__) / "troubleshooting.json").read_text(encoding="utf-8"))
