"""Tables for the pages of runs and studies, with metrics as percentages."""

import re
from typing import Any

import pandas as pd

from landmark.reporting.page import html_table
from landmark.reporting.tables import METRIC_NAMES, TOPK

FRACTION_COLUMNS = (
    *("val_top1", "val_top5", "train_top1", "val_macro_recall", "explained variance", "expected by chance"),
    *(f"test_top{k}" for k in TOPK),
    *(f"top{k}" for k in TOPK),
)
"""Columns that contain fractions, shown as percentages."""
DISPLAY_NAMES = {
    name: METRIC_NAMES.get(name) or re.sub(r"top(\d+)", r"top-\1", name).replace("_", " ")
    for name in ("train_loss", "val_loss", "epochs_run", "best_epoch", "images_per_s", *FRACTION_COLUMNS)
}
"""Display names of columns."""


def table_of(table: pd.DataFrame) -> dict[str, Any]:
    """Return a table for the page, with fractions as percentages and display names for columns."""
    fractions = [DISPLAY_NAMES.get(name, name) for name in table.columns if name in FRACTION_COLUMNS]
    return html_table(table.rename(columns=DISPLAY_NAMES), fractions)
