"""Trivial baselines: results of predictions that do not use the image."""

import numpy as np

from landmark.evaluation.metrics import gap_by_chance


def random_top_k(classes: int, k: int) -> float:
    """Return the expected top-k accuracy of k different random classes: min(k, classes) / classes."""
    return min(k, classes) / classes


def majority_top_k(train_counts: np.ndarray, counts: np.ndarray, k: int) -> float:
    """Return the top-k accuracy of always predicting the k most frequent classes of the training split.

    train_counts, counts: images per class, int (classes,), of the training split and of the evaluated split.
    Among classes of equal frequency the lower label comes first.
    """
    answered = np.argsort(-np.asarray(train_counts), kind="stable")[:k]
    return float(np.asarray(counts)[answered].sum() / max(np.asarray(counts).sum(), 1))


def random_gap(classes: int, rows: int, landmarks: int) -> float:
    """Return the expected GAP of random predictions and scores.

    rows: number of images. landmarks: number of images that show a landmark.
    """
    accuracy = landmarks / (classes * max(rows, 1))
    return gap_by_chance(accuracy, accuracy, rows, landmarks)


def majority_gap(train_counts: np.ndarray, counts: np.ndarray, rows: int) -> float:
    """Return the expected GAP of always predicting the most frequent training class with random scores.

    train_counts, counts: images per class, as in `majority_top_k`. rows: all images, including those without a
    landmark.
    """
    landmarks = int(np.asarray(counts).sum())
    accuracy = majority_top_k(train_counts, counts, 1) * landmarks / max(rows, 1)
    return gap_by_chance(accuracy, max(accuracy * rows - 1, 0) / max(rows - 1, 1), rows, landmarks)
