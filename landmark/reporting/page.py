"""The page: one self-contained HTML file about a study or a run, that asks no server for anything."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from landmark.reporting.tables import STOPPED

SCRIPTS = ("base.js", "chart.js", "compare.js", "matrix.js", "classes.js")
"""The page's own scripts, in order; all of them become one that the page's policy knows by its hash."""


@dataclass(kw_only=True)
class Picture:
    """A photograph."""

    data: bytes
    """JPEG."""
    alt: str
    """What it shows, for who cannot see it."""
    caption: str = ""
    """Text below it."""
    mark: str = ""
    """Which of several it is, in a word above it."""

    @property
    def source(self) -> str:
        """The photograph as a URI."""
        return "data:image/jpeg;base64," + base64.b64encode(self.data).decode()


@dataclass(kw_only=True)
class Gallery:
    """Pictures that belong together, under a line of text."""

    title: str
    pictures: list[Picture]


@dataclass(kw_only=True)
class Widget:
    """A part of the page that its script fills."""

    name: str
    """Which: compare, matrix or classes."""
    data: Any
    """What the script needs, ready for JSON."""

    @property
    def json(self) -> Markup:
        """The data as JSON that is safe inside a script element."""
        text = json.dumps(self.data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


@dataclass(kw_only=True)
class Section:
    """A part of the page: a heading, and below it text, a picture, a table, or something to work with."""

    title: str
    text: str = ""
    table: dict[str, Any] | None = None
    """As `html_table` gives it."""
    more: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Further tables, each under a title."""
    chart: str | None = None
    """SVG, as `landmark.reporting.plots.svg_text` gives it."""
    alt: str = ""
    """What the chart shows, for who cannot see it; empty: the title says it."""
    galleries: list[Gallery] = field(default_factory=list)
    widget: Widget | None = None
    texts: list[tuple[str, str]] = field(default_factory=list)
    """Titles and texts that are opened on demand, such as a config."""

    @property
    def anchor(self) -> str:
        """The section's name in a link."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"

    @property
    def photographs(self) -> int:
        """How many there are in all galleries."""
        return sum(len(gallery.pictures) for gallery in self.galleries)

    @property
    def drawn(self) -> Markup:
        """The chart with its text alternative."""
        label = html.escape(self.alt or self.title, quote=True)
        return Markup((self.chart or "").replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


@dataclass(kw_only=True)
class Group:
    """Sections that belong together."""

    title: str
    sections: list[Section]

    @property
    def anchor(self) -> str:
        """The group's name in a link."""
        return "part-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(kw_only=True)
class Page:
    """What the page shows."""

    title: str
    subtitle: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Figures shown large: name and value."""
    groups: list[Group] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Commands to go on with."""
    files: list[tuple[str, str]] = field(default_factory=list)
    """Files beside the page: name, and what it holds."""


def render(page: Page) -> str:
    """Return the page as HTML that needs no other file; all text is escaped, and only the page's own script may run."""
    script = "(() => {\n" + "\n".join(_template_text(name) for name in SCRIPTS) + "\n})();"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    groups = [group for group in page.groups if group.sections]
    return _template().render(
        **{**vars(page), "groups": groups},
        policy=policy,
        script=Markup(script),
        style=Markup(_template_text("page.css")),
    )


def html_table(table: pd.DataFrame, shares: Sequence[str] = ()) -> dict[str, Any]:
    """Return a table for the template; columns in `shares` as percentages, rows that stopped early marked."""
    rows: list[dict[str, Any]] = [
        {
            "early": row.get("status") == STOPPED,
            "cells": [_cell(row[name], share=name in shares) for name in table.columns],
        }
        for row in table.to_dict(orient="records")
    ]
    numbers = [any(row["cells"][place]["number"] for row in rows) for place in range(len(table.columns))]
    return {"columns": list(zip(map(str, table.columns), numbers, strict=True)), "rows": rows}


def within_budget(galleries: Iterable[Gallery], limit: int) -> tuple[list[Gallery], int]:
    """Return the galleries whose photographs fit into `limit` bytes, in order, and how many photographs are left out."""
    kept, left_out, spent = [], 0, 0
    for gallery in galleries:
        size = sum(len(picture.data) for picture in gallery.pictures)
        if spent + size > limit:
            left_out += len(gallery.pictures)
            continue
        spent += size
        kept.append(gallery)
    return kept, left_out


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("landmark.reporting", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html")


@cache
def _template_text(name: str) -> str:
    return resources.files("landmark.reporting").joinpath("templates", name).read_text()


def _cell(value: Any, *, share: bool) -> dict[str, Any]:
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return {"text": "", "number": share}
    if share:
        return {"text": f"{value:.2%}", "number": True}
    if isinstance(value, bool):
        return {"text": "yes" if value else "no", "number": False}
    if isinstance(value, float) and abs(value) >= 1e4:
        return {"text": f"{value:,.0f}", "number": True}
    if isinstance(value, float):
        return {"text": f"{value:,.4g}", "number": True}
    return {"text": f"{value:,}" if isinstance(value, int) else str(value), "number": isinstance(value, int)}
