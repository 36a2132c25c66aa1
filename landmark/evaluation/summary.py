"""All metrics of stored predictions, with trivial baselines."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from landmark.evaluation.accumulator import ConfusionAccumulator, summarize
from landmark.evaluation.baselines import majority_gap, random_gap
from landmark.evaluation.bootstrap import intervals
from landmark.evaluation.metrics import (
    BANDS,
    Calibration,
    calibration,
    class_bands,
    gap,
    gap_order,
    rejection_auroc,
    rejection_threshold,
)
from landmark.evaluation.predictions import Predictions


def accumulate(predictions: Predictions, classes: int, topk: tuple[int, ...]) -> ConfusionAccumulator:
    """Return the counts of the images with a landmark."""
    accumulator = ConfusionAccumulator(classes, topk)
    of_landmarks = predictions.of_landmarks()
    if len(of_landmarks):
        top_k_labels = of_landmarks.top_k_labels[:, : accumulator.max_k]
        accumulator.update(of_landmarks.labels, top_k_labels, float(of_landmarks.losses.astype(np.float64).sum()))
    return accumulator


def metrics_of(
    predictions: Predictions,
    accumulator: ConfusionAccumulator,
    split: str,
    train_counts: np.ndarray,
    *,
    samples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the metrics of a split, for JSON.

    accumulator: the split's counts. train_counts: training images per class, int (classes,). samples: bootstrap replicates, 0
    for no intervals. groups: values (n,) that are equal within a group of images, None for no groups. Top-k, recall,
    precision, loss and calibration use the images with a landmark. GAP and rejection use all images.
    """
    has_landmark, landmarks = predictions.has_landmark, int(predictions.has_landmark.sum())
    scores = predictions.scores[:, 0]
    correct = predictions.top(1) & has_landmark
    order = gap_order(scores, predictions.image_ids, predictions.top_k_labels[:, 0])
    distractors = len(predictions) - landmarks
    summary = summarize(accumulator, split, train_counts)
    summary |= {
        "macro_precision": accumulator.macro_precision(),
        "gap": gap(correct[order], landmarks),
        "random_gap": random_gap(accumulator.classes, len(predictions), landmarks),
        "majority_gap": majority_gap(train_counts, accumulator.support, len(predictions)),
        "ece": calibration_of(predictions).error,
        "rows_without_landmark": distractors,
    }
    if np.isnan(predictions.losses[has_landmark]).all():  # k-NN has no loss
        del summary["loss"]
    if distractors:
        summary["rejection_auroc"] = rejection_auroc(scores, has_landmark)
        summary["rejection"] = rejection_threshold(scores, has_landmark)
    summary["bands"] = band_metrics(predictions.of_landmarks(), accumulator, train_counts)
    if samples:
        found = intervals(predictions, accumulator.topk, samples=samples, seed=seed, groups=groups)
        summary["intervals"] = {name: [interval.low, interval.high] for name, interval in found.items()}
        summary["bootstrap"] = {"samples": samples, "seed": seed}
        if groups is not None:
            summary["bootstrap"]["groups"] = len(np.unique(groups))
    return summary


def calibration_of(predictions: Predictions) -> Calibration:
    """Return the calibration of the top-1 predictions for images with a landmark."""
    of_landmarks = predictions.of_landmarks()
    return calibration(of_landmarks.scores[:, 0], of_landmarks.top(1))


def band_metrics(
    predictions: Predictions, accumulator: ConfusionAccumulator, train_counts: np.ndarray
) -> list[dict[str, Any]]:
    """Return top-k and macro recall per training-frequency band, head first. Bands without images are omitted."""
    bands = class_bands(train_counts)
    of_rows = bands[predictions.labels]
    found: list[dict[str, Any]] = []
    for number, name in enumerate(BANDS):
        rows = of_rows == number
        present = (bands == number) & (accumulator.support > 0)
        if not rows.any():
            continue
        counts = np.asarray(train_counts)[present]
        row: dict[str, Any] = {"band": name, "classes": int(present.sum()), "rows": int(rows.sum())}
        row |= {f"top{k}": float(predictions.top(k)[rows].mean()) for k in accumulator.topk}
        row["macro_recall"] = float((accumulator.correct[present] / accumulator.support[present]).mean())
        found.append(row | {"least_train_images": int(counts.min()), "most_train_images": int(counts.max())})
    return found


def baselines_of(summary: Mapping[str, Any], topk: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Return the top-k accuracies of the random and the majority baseline by k (as text, for JSON)."""
    return {kind: {str(k): summary[f"{kind}_top{k}"] for k in topk} for kind in ("random", "majority")}
