"""Trivial baselines: what a model that never looks at the image would reach."""

import numpy as np

from landmark.evaluation.measures import gap_by_chance

QUERIES = 256
"""Queries whose similarities to all training images are held at a time."""


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
    return gap_by_chance(landmarks / (classes * max(rows, 1)), rows, landmarks)


def majority_gap(train_counts: np.ndarray, counts: np.ndarray, rows: int) -> float:
    """Return the GAP expected of always guessing the most frequent class of the training split, with scores at random.

    train_counts, counts: images a class, as in `majority_top_k`; rows: images, those without a landmark included.
    """
    landmarks = int(np.asarray(counts).sum())
    share = majority_top_k(train_counts, counts, 1) * landmarks / max(rows, 1)
    return gap_by_chance(share, rows, landmarks)


def nearest_neighbours(
    train: np.ndarray, train_labels: np.ndarray, queries: np.ndarray, classes: int, *, neighbours: int, guesses: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the nearest training images' classes say: guesses int32 (n, guesses), scores float32 (n, guesses).

    train float32 (m, d), queries float32 (n, d): embeddings of length 1. The `neighbours` most similar training images vote for
    their classes, each by its cosine similarity; the score is a class's share of the votes. Where fewer classes were voted for
    than are asked for, other classes follow with score 0. All similarities of a block of queries are computed, none is kept.
    """
    found = np.empty((len(queries), guesses), np.int32)
    scores = np.zeros((len(queries), guesses), np.float32)
    neighbours = min(neighbours, len(train))
    for start in range(0, len(queries), QUERIES):
        similar = queries[start : start + QUERIES] @ train.T
        nearest = np.argpartition(-similar, neighbours - 1, axis=1)[:, :neighbours]
        votes = np.maximum(np.take_along_axis(similar, nearest, axis=1), 0)
        for row, (labels, weights) in enumerate(zip(train_labels[nearest], votes, strict=True), start):
            named, place = np.unique(labels, return_inverse=True)
            total = np.bincount(place, weights=weights)
            order = np.lexsort((named, -total))[:guesses]
            found[row, : len(order)] = named[order]
            scores[row, : len(order)] = total[order] / max(total.sum(), 1e-12)
            if len(order) < guesses:
                rest = np.setdiff1d(np.arange(min(classes, guesses + len(order))), named)[: guesses - len(order)]
                found[row, len(order) :] = rest
    return found, scores
