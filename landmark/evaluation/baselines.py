"""Trivial baselines: what a model that never looks at the image would reach."""

import numpy as np

from landmark.evaluation.measures import gap_by_chance


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


def random_gap(classes: int, rows: int, landmarks: int) -> float:
    """Return the GAP expected of guesses and scores drawn at random, for `rows` images of which `landmarks` show one."""
    share = landmarks / (classes * max(rows, 1))
    return gap_by_chance(share, share, rows, landmarks)


def majority_gap(train_counts: np.ndarray, counts: np.ndarray, rows: int) -> float:
    """Return the GAP expected of always guessing the most frequent class of the training split, with scores at random.

    train_counts, counts: images a class, as in `majority_top_k`; rows: images, those without a landmark included.
    """
    landmarks = int(np.asarray(counts).sum())
    share = majority_top_k(train_counts, counts, 1) * landmarks / max(rows, 1)
    return gap_by_chance(share, max(share * rows - 1, 0) / max(rows - 1, 1), rows, landmarks)
