"""Aligned text tables of trials and of nodes."""

import unicodedata
from collections.abc import Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with aligned columns. Columns of numbers are right-aligned."""
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    right = [all(_is_number(row[column]) for row in rows[1:]) for column in range(len(widths))]
    lines = []
    for row in rows:
        cells = [
            " " * (width - _width(cell)) + cell if to_right else cell + " " * (width - _width(cell))
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def shown_value(value: Any) -> str:
    """Format a parameter's value: three digits of a float, the end of a long text."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 32 else f"…{text[-31:]}"


def shown_metric(name: str, value: float | None) -> str:
    """Format a metric: fractions as percentages, losses as they are, - for none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if name.endswith("loss") else f"{value:.1%}"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()
