"""Predictions made up for tests."""

import numpy as np

from landmark.evaluation.predictions import Predictions


def predictions_of(labels: np.ndarray, logits: np.ndarray, k: int = 10, ids: list[str] | None = None) -> Predictions:
    """Predictions as inference keeps them: labels int (n,), -1 for no landmark; logits float (n, classes)."""
    labels = np.asarray(labels, dtype=np.int32)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    order = np.argsort(-shares, axis=1, kind="stable")[:, : min(k, logits.shape[1])].astype(np.int32)
    with np.errstate(divide="ignore"):
        losses = -np.log(shares[np.arange(len(labels)), np.maximum(labels, 0)])
    return Predictions(
        samples=np.arange(len(labels)),
        image_ids=np.array(ids if ids is not None else [f"{row:016x}" for row in range(len(labels))]),
        labels=labels,
        guesses=order,
        scores=np.take_along_axis(shares, order, axis=1).astype(np.float32),
        losses=np.where(labels < 0, np.nan, losses).astype(np.float32),
    )


def random_predictions(
    rows: int, classes: int, *, right: float = 0.6, strangers: float = 0.0, seed: int = 0
) -> Predictions:
    """Predictions of a model that is right for about a share of the images; `strangers` of them show no landmark."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    logits = random.normal(size=(rows, classes)) * 1.5
    sure = random.random(rows) < right
    logits[sure, labels[sure]] += 5
    return predictions_of(np.where(random.random(rows) < strangers, -1, labels), logits)
