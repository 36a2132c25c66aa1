"""The page: one self-contained HTML file about a study or a run."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
import pandas as pd

from landmark.reporting.tables import STOPPED


@dataclass(kw_only=True)
class Section:
    """A part of the page: a heading, and below it text, a table, a picture."""

    title: str
    text: str = ""
    table: dict[str, Any] | None = None
    """As `html_table` gives it."""
    picture: str | None = None
    """PNG in base64, as `embedded` gives it."""
    alt: str = ""
    """What the picture shows, for who cannot see it; empty: the title says it."""


@dataclass(kw_only=True)
class Page:
    """What the page shows."""

    title: str
    subtitle: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    """Figures shown large: name and value."""
    sections: list[Section] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Commands to go on with."""


def render(page: Page) -> str:
    """Return the page as HTML that needs no other file; all text is escaped."""
    return _template().render(**vars(page))


def html_table(table: pd.DataFrame, shares: Sequence[str] = ()) -> dict[str, Any]:
    """Return a table for the template; columns in `shares` as percentages, rows that stopped early marked."""
    rows = [
        {
            "early": row.get("status") == STOPPED,
            "cells": [_cell(row[name], share=name in shares) for name in table.columns],
        }
        for row in table.to_dict(orient="records")
    ]
    return {"columns": list(table.columns), "rows": rows}


def embedded(png: bytes) -> str:
    """Return a PNG as text that the template embeds."""
    return base64.b64encode(png).decode()


def metrics_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Return a split's top-k shares beside the baselines' as a table."""
    ks = [key for key in metrics if key.startswith("top")]
    return pd.DataFrame(
        {
            "metric": [f"top-{key[3:]}" for key in ks],
            "model": [metrics[key] for key in ks],
            "majority baseline": [metrics[f"majority_{key}"] for key in ks],
            "random baseline": [metrics[f"random_{key}"] for key in ks],
        }
    )


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("landmark.reporting", "templates")
    return jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")


def _cell(value: Any, *, share: bool) -> dict[str, Any]:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return {"text": "", "number": share}
    if share:
        return {"text": f"{value:.2%}", "number": True}
    if isinstance(value, float) and abs(value) >= 1e4:
        return {"text": f"{value:,.0f}", "number": True}
    if isinstance(value, float):
        return {"text": f"{value:,.4g}", "number": True}
    if isinstance(value, bool):
        return {"text": "yes" if value else "no", "number": False}
    return {"text": f"{value:,}" if isinstance(value, int) else str(value), "number": isinstance(value, int)}
