"""Writes an evaluation's tables: metrics, metrics per class, confusion, calibration, predictions, comparisons."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.evaluation import ConfusionAccumulator
from landmark.evaluation.comparison import Comparison
from landmark.evaluation.metrics import BANDS, class_bands
from landmark.evaluation.predictions import Predictions
from landmark.evaluation.summary import calibration_of
from landmark.storage import Location
from landmark.storage.tables import write_csv, write_table


def write_evaluation_files(
    folder: Location,
    summary: Mapping[str, Any],
    accumulator: ConfusionAccumulator,
    predictions: Predictions,
    names: Sequence[str],
    train_counts: np.ndarray,
) -> None:
    """Write an evaluation's tables into a folder. metrics.json is written last."""
    bands = pa.array([BANDS[band] for band in class_bands(train_counts).tolist()])
    classes = accumulator.per_class(names, train_counts).append_column("band", bands)
    write_csv(folder / "per_class.csv", classes)
    write_table(folder / "per_class.parquet", classes)
    write_csv(folder / "confusion.csv", accumulator.confusion())
    write_csv(folder / "calibration.csv", calibration_table(predictions))
    if summary["bands"]:
        write_csv(folder / "bands.csv", pa.Table.from_pylist(summary["bands"]))
    write_table(folder / "predictions.parquet", predictions.to_table())
    (folder / "metrics.json").write_text(json.dumps(dict(summary), indent=1) + "\n")


def calibration_table(predictions: Predictions) -> pa.Table:
    """Return the confidence bins: low, high, rows, confidence and accuracy (null in an empty bin)."""
    found = calibration_of(predictions)
    columns = {name: getattr(found, name) for name in ("low", "high", "rows", "confidence", "accuracy")}
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def write_comparison(folder: Location, comparison: Comparison, names: Sequence[str], models: tuple[str, str]) -> None:
    """Write the comparison of two models: comparison.json, comparison.parquet (images), comparison_classes.csv."""
    write_table(folder / "comparison.parquet", comparison.table)
    label, correct_a, correct_b = (
        comparison.table[name].to_numpy(zero_copy_only=False) for name in ("label", "correct_a", "correct_b")
    )
    has_landmark = label >= 0
    counts = [
        np.bincount(label[has_landmark & rows], minlength=len(names))
        for rows in (has_landmark, correct_a & ~correct_b, correct_b & ~correct_a)
    ]
    columns = dict(zip(("images", "only_a", "only_b"), counts, strict=True))
    classes = pa.table({"label": np.arange(len(names), dtype=np.int32), "name": list(names), **columns})
    write_csv(folder / "comparison_classes.csv", classes.filter(pa.array(counts[0] > 0)))
    values = {"a": models[0], "b": models[1], **comparison.summary()}
    (folder / "comparison.json").write_text(json.dumps(values, indent=1) + "\n")
