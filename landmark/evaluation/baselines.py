"""Trivial baselines: what a model that never looks at the image would reach."""

import numpy as np


def random_top_k(classes: int, k: int) -> float:
    """Return the expected top-k accuracy of k different classes drawn at random: min(k, classes) / classes."""
    return min(k, classes) / classes


def majority_top_k(train_counts: np.ndarray, counts: np.ndarray, k: int) -> float:
    """Return the top-k accuracy of always answering the k most frequent classes of the training split.

    train_counts, counts: images a class, int (classes,), of the training split and of the evaluated one.
    Among classes of equal frequency the lower label is answered first.
    """
    answered = np.argsort(-np.asarray(train_counts), kind="stable")[:k]
    return float(np.asarray(counts)[answered].sum() / max(np.asarray(counts).sum(), 1))
