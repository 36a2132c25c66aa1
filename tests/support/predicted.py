"""Synthetic predictions for tests."""

import numpy as np

from landmark.evaluation.predictions import Predictions


def predictions_of(labels: np.ndarray, logits: np.ndarray, k: int = 10, ids: list[str] | None = None) -> Predictions:
    """Return predictions as inference stores them. labels: int (n,), -1 for distractors; logits: float (n, classes)."""
    labels = np.asarray(labels, dtype=np.int32)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(k, logits.shape[1])].astype(np.int32)
    with np.errstate(divide="ignore"):
        losses = -np.log(probabilities[np.arange(len(labels)), np.maximum(labels, 0)])
    return Predictions(
        samples=np.arange(len(labels)),
        image_ids=np.array(ids if ids is not None else [f"{row:016x}" for row in range(len(labels))]),
        labels=labels,
        top_k_labels=order,
        scores=np.take_along_axis(probabilities, order, axis=1).astype(np.float32),
        losses=np.where(labels < 0, np.nan, losses).astype(np.float32),
    )


def random_predictions(
    rows: int, classes: int, *, correct: float = 0.6, distractors: float = 0.0, seed: int = 0
) -> Predictions:
    """Return predictions with a top-1 accuracy of about `correct`. `distractors` is the fraction of distractors."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)) * 1.5
    is_correct = random.random(rows) < correct
    logits[is_correct, labels[is_correct]] += 5
    return predictions_of(np.where(random.random(rows) < distractors, -1, labels), logits)
