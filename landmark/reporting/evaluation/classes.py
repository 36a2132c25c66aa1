"""Class data for the page: confusion matrix, compressed table of all classes, best and worst classes."""

import base64
import gzip
import json
from typing import Any

import numpy as np
import pandas as pd

from landmark.reporting.evaluation.class_order import clustered_order
from landmark.reporting.evaluation.reader import EvaluationTables

MAX_CLASSES = 400
"""If there are more classes, the matrix shows a subset."""
SHOWN_CLASSES = 200
"""Number of classes in that subset: those with the most errors."""
CLASSES_BYTES = 1_600_000
"""Maximum size of the page's class table, compressed and base64-encoded."""
EXTREMES = 10
"""Number of best and of worst classes."""


def matrix_data(evaluation: EvaluationTables) -> dict[str, Any]:
    """Return the data of the page's confusion matrix.

    If there are more than 400 classes, the 200 with the most errors are shown. Keys:
    names; images (in the split); train (training images); recall (None if the class has no image);
    cells (flat: row, column, count; rows are true classes); support (predictions per row, including those for classes
    that are not shown); clustered (class order in which confused classes are adjacent);
    total (number of all classes).
    """
    classes, cells = evaluation.classes, evaluation.confusion[evaluation.confusion["true"] >= 0]
    true, predicted, count = (cells[name].to_numpy(np.int64) for name in ("true", "predicted", "count"))
    total = len(classes)
    shown = np.arange(total)
    if total > MAX_CLASSES:
        wrong = np.bincount(true, weights=np.where(true == predicted, 0, count), minlength=total)
        shown = np.sort(np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES])
    position = np.full(total, -1)
    position[shown] = np.arange(len(shown))
    inside = (position[true] >= 0) & (position[predicted] >= 0)
    rows, columns, counts = position[true[inside]], position[predicted[inside]], count[inside]
    support = np.bincount(true, weights=count, minlength=total).astype(np.int64)
    part = classes.iloc[shown]
    return {
        "names": part["name"].tolist(),
        "images": part["images"].astype(int).tolist(),
        "train": part["train_images"].astype(int).tolist(),
        "recall": rounded(part["recall"]),
        "cells": np.stack([rows, columns, counts], axis=1).ravel().tolist(),
        "support": support[shown].tolist(),
        "clustered": clustered_order(rows, columns, counts, len(shown)).tolist(),
        "total": total,
    }


def class_columns(evaluation: EvaluationTables, limit: int = CLASSES_BYTES) -> dict[str, Any]:
    """Return the classes for the page's searchable table: up to `limit` bytes, classes of the split first.

    data: base64 of gzipped JSON with the columns label, name, train, images, recall, precision. shown, total: numbers
    of classes.
    """
    classes = evaluation.classes
    order = classes.assign(in_split=classes["images"] > 0).sort_values(
        ["in_split", "train_images", "label"], ascending=[False, False, True], kind="stable"
    )
    shown = len(order)
    while True:
        part = order.head(shown)
        columns = {
            "label": part["label"].astype(int).tolist(),
            "name": part["name"].tolist(),
            "train": part["train_images"].astype(int).tolist(),
            "images": part["images"].astype(int).tolist(),
            "recall": rounded(part["recall"]),
            "precision": rounded(part["precision"]),
        }
        text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"))
        data = base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
        if len(data) <= limit or shown == 0:
            return {"data": data, "shown": shown, "total": len(order)}
        shown = int(shown * 0.95 * limit / len(data))


def extremes(evaluation: EvaluationTables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the classes of the split with the highest and the lowest recall. Ties: classes with more images first."""
    in_split = evaluation.classes[evaluation.classes["images"] > 0]
    columns = ["name", "recall", "precision", "images", "train_images"]
    best = in_split.sort_values(["recall", "images"], ascending=[False, False], kind="stable")
    worst = in_split.sort_values(["recall", "images"], ascending=[True, False], kind="stable")
    tables = (
        table[columns].head(EXTREMES).rename(columns={"train_images": "training images"}) for table in (best, worst)
    )
    first, second = tables
    return first, second


def rounded(values: pd.Series) -> list[float | None]:
    """Return fractions rounded to four digits, None for NaN."""
    return [None if pd.isna(value) else round(float(value), 4) for value in values]
