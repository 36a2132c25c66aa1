"""Sections that the pages of runs and of studies share: a table of metrics, an evaluation on the test split."""

from typing import Any

import pandas as pd

from landmark.reporting.page import Section, embedded, html_table, metrics_table
from landmark.reporting.tables import TOPK, read_json
from landmark.storage import Location

SHARES = (
    *("val_top1", "val_top5", "val_macro_recall", "explained", "by chance"),
    *(f"test_top{k}" for k in TOPK),
    *(f"top{k}" for k in TOPK),
)
"""Columns that are shares, shown as percentages."""


def table_of(table: pd.DataFrame) -> dict[str, Any]:
    """Return a table for the page, metrics that are shares as percentages."""
    return html_table(table, [name for name in table.columns if name in SHARES])


def evaluation_sections(folder: Location) -> list[Section]:
    """Return the sections of an evaluation on the test split, none where there is none."""
    if not (folder / "metrics.json").exists():
        return []
    metrics = read_json(folder / "metrics.json")
    picture = embedded((folder / "confusion.png").read_bytes())
    text = (
        f"{metrics['rows']:,} images of {metrics['classes_present']:,} classes; "
        f"macro recall {metrics['macro_recall']:.2%}, loss {metrics['loss']:.3f}."
    )
    table = html_table(metrics_table(metrics), ("model", "majority baseline", "random baseline"))
    return [
        Section(title="Best model on the test split", text=text, table=table),
        Section(title="Confusion matrix", picture=picture),
    ]
