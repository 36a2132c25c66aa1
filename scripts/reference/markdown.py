"""Markdown: tables, code, anchors."""

import re
import textwrap
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell(value) for value in line)} |" for line in lines)


def cell(text: str) -> str:
    """Return a text for a cell: one line, pipes and HTML escaped outside of code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else escaped(part) for part in parts)


def escaped(text: str) -> str:
    """Return a text in which Markdown has nothing to read, links excepted."""
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"(?<![\w`])\*|\*(?![\w`])", r"\\*", text)


def code(text: str) -> str:
    """Return a text as inline code."""
    return f"`{text}`"


def fenced(text: str, language: str = "sh") -> str:
    """Return a code block."""
    return f"```{language}\n{textwrap.dedent(text).strip()}\n```"


def anchor(name: str) -> str:
    """Return the anchor of a command."""
    return name.replace(" ", "-")
