"""The HTML page of a study or a run: one self-contained file that loads nothing from a server."""

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
"""The page's scripts, in order. They are joined into one script that the content security policy allows by its hash."""


@dataclass(kw_only=True)
class Picture:
    """A photograph."""

    data: bytes
    """JPEG."""
    alt: str
    """Text alternative."""
    caption: str = ""
    """Text below it."""
    badge: str = ""
    """A short label over the image."""

    @property
    def source(self) -> str:
        """The photograph as a URI."""
        return "data:image/jpeg;base64," + base64.b64encode(self.data).decode()


@dataclass(kw_only=True)
class Gallery:
    """Pictures under one title."""

    title: str
    pictures: list[Picture]


@dataclass(kw_only=True)
class Widget:
    """A page element that a script renders."""

    name: str
    """compare, matrix or classes."""
    data: Any
    """JSON-serializable data for the script."""

    @property
    def json(self) -> Markup:
        """The data as JSON that is safe inside a script element."""
        text = json.dumps(self.data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


@dataclass(kw_only=True)
class Section:
    """A page section: a title with text, a chart, tables, a widget or images."""

    title: str
    text: str = ""
    table: dict[str, Any] | None = None
    """As returned by `html_table`."""
    extra_tables: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Additional tables: title and table."""
    chart: str | None = None
    """SVG, as returned by `landmark.reporting.plots.svg_text`."""
    alt: str = ""
    """Text alternative of the chart. If empty, the title is used."""
    galleries: list[Gallery] = field(default_factory=list)
    widget: Widget | None = None
    collapsibles: list[tuple[str, str]] = field(default_factory=list)
    """Collapsible text blocks, such as a config: title and text."""

    @property
    def anchor(self) -> str:
        """The section's id in a link."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"

    @property
    def photograph_count(self) -> int:
        """Number of photographs in all galleries."""
        return sum(len(gallery.pictures) for gallery in self.galleries)

    @property
    def chart_html(self) -> Markup:
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
        """The group's id in a link."""
        return "group-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(kw_only=True)
class Page:
    """The page's content."""

    title: str
    subtitle: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Key figures: name and value."""
    groups: list[Group] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Suggested next commands."""
    files: list[tuple[str, str]] = field(default_factory=list)
    """Files next to the page: name and description."""


def render(page: Page) -> str:
    """Return the page as self-contained HTML. All text is escaped, and only the page's own script may run."""
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


def html_table(table: pd.DataFrame, fractions: Sequence[str] = ()) -> dict[str, Any]:
    """Return a table for the template.

    Columns in `fractions` are shown as percentages. Rows of trials that stopped early are marked.
    """
    rows: list[dict[str, Any]] = [
        {
            "early": row.get("status") == STOPPED,
            "cells": [_cell(row[name], fraction=name in fractions) for name in table.columns],
        }
        for row in table.to_dict(orient="records")
    ]
    is_number = [any(row["cells"][index]["number"] for row in rows) for index in range(len(table.columns))]
    return {"columns": list(zip(map(str, table.columns), is_number, strict=True)), "rows": rows}


def within_budget(galleries: Iterable[Gallery], limit: int) -> tuple[list[Gallery], int]:
    """Return the galleries that fit into `limit` bytes, in order, and the number of omitted photographs."""
    kept, omitted, used = [], 0, 0
    for gallery in galleries:
        size = sum(len(picture.data) for picture in gallery.pictures)
        if used + size > limit:
            omitted += len(gallery.pictures)
            continue
        used += size
        kept.append(gallery)
    return kept, omitted


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("landmark.reporting", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html")


@cache
def _template_text(name: str) -> str:
    return resources.files("landmark.reporting").joinpath("templates", name).read_text()


def _cell(value: Any, *, fraction: bool) -> dict[str, Any]:
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return {"text": "", "number": fraction}
    if fraction:
        return {"text": f"{value:.2%}", "number": True}
    if isinstance(value, bool):
        return {"text": "yes" if value else "no", "number": False}
    if isinstance(value, float) and abs(value) >= 1e4:
        return {"text": f"{value:,.0f}", "number": True}
    if isinstance(value, float):
        return {"text": f"{value:,.4g}", "number": True}
    return {"text": f"{value:,}" if isinstance(value, int) else str(value), "number": isinstance(value, int)}
