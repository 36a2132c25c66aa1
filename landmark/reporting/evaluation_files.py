"""An evaluation as files: metrics.json, per_class.csv, confusion.csv and confusion.png."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from landmark.evaluation import Tally
from landmark.reporting.plots import confusion_png
from landmark.storage import Location


def write_evaluation_files(
    folder: Location, summary: Mapping[str, Any], tally: Tally, names: Sequence[str], train_counts: np.ndarray
) -> None:
    """Write an evaluation's files into a folder; metrics.json comes last."""
    write_csv(folder / "per_class.csv", tally.per_class(names, train_counts))
    confusion = tally.confusion()
    write_csv(folder / "confusion.csv", confusion)
    (folder / "confusion.png").write_bytes(confusion_png(confusion, names))
    (folder / "metrics.json").write_text(json.dumps(dict(summary), indent=1) + "\n")


def write_csv(place: Location, table: pa.Table) -> None:
    """Write a table as CSV."""
    buffer = io.BytesIO()
    pacsv.write_csv(table, buffer, pacsv.WriteOptions(quoting_style="needed"))
    place.write_bytes(buffer.getvalue())
