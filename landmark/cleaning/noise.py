"""Label errors and distractors: confident learning on frozen embeddings, and nearest neighbors.

Each image has two out-of-fold class distributions. One is from a linear classifier on frozen embeddings (Northcutt et
al. 2021, the library cleanlab). The other is from the labels of its nearest embeddings, which GLDv2's authors used to
confirm labels (Weyand et al. 2020). The mean of both is used.
"""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from landmark.config import NoiseConfig, UserError
from landmark.config.extras import install_command
from landmark.retrieval.knn import nearest_embeddings

SHARPNESS = 10.0
"""Weight of a neighbor's vote: exp(SHARPNESS * cosine)."""
INVERSE_PENALTY = 10.0
"""Inverse regularization strength `C` of scikit-learn's linear classifier, for embeddings of length 1."""


@dataclass(kw_only=True, frozen=True, eq=False)
class Findings:
    """Result per image. Arrays have the same length n."""

    wrong: np.ndarray
    """Whether the label is wrong, bool."""
    best: np.ndarray
    """The most probable class, int64."""
    confidence: np.ndarray
    """Probability of that class, float64."""
    own: np.ndarray
    """Probability of the image's own label, float64."""
    mean_neighbor_similarity: np.ndarray
    """Mean cosine with the nearest embeddings, float64. Uses class size - 1 neighbors, at most config.neighbors."""


def find_noise(embeddings: np.ndarray, labels: np.ndarray, config: NoiseConfig, seed: int) -> Findings:
    """Check the labels of images, int64 (n,), by their embeddings (n, d).

    Classes with fewer images than config.min_class_images have no label errors, because their neighbors are mostly of
    other classes. Only classes that occur are used. Memory is O(images x classes). If that exceeds config.max_cells,
    only neighbors are used, with O(images x neighbors) memory. Raises UserError if a package is missing.
    """
    classes, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    found = _decisions(embeddings, labels, classes, codes, config, seed)
    rare = sizes[codes] < config.min_class_images
    return dataclasses.replace(found, wrong=found.wrong & ~rare)


def over_fraction(labels: np.ndarray, certainty: np.ndarray, fraction: float, sizes: np.ndarray) -> np.ndarray:
    """Return which images exceed a maximum fraction of their class, bool (n,): those with the lowest certainty.

    labels: classes of the images that a detector found, int64 (n,). certainty: float64 (n,). sizes: images per class.
    """
    order = np.lexsort((-certainty, labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(starts, np.diff(np.append(starts, len(labels))))
    return place >= np.floor(fraction * sizes[labels] + 1e-9)


def _mean_neighbor_similarity(codes: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Return the mean cosine with the nearest embeddings, float64 (n,).

    A single image of a class uses its nearest one.
    """
    rows, count = cosines.shape
    if not count:
        return np.zeros(rows)
    # A class of three has only two similar images per image. A mean over ten would mostly measure other classes.
    others = np.clip(np.bincount(codes)[codes] - 1, 1, count)
    sums = np.cumsum(cosines.astype(np.float64), axis=1)
    return sums[np.arange(rows), others - 1] / others


def _decisions(
    embeddings: np.ndarray, labels: np.ndarray, classes: np.ndarray, codes: np.ndarray, config: NoiseConfig, seed: int
) -> Findings:
    near, cosines = nearest_embeddings(embeddings, config.neighbors)
    mean_neighbor_similarity = _mean_neighbor_similarity(codes, cosines)
    weights = np.exp(SHARPNESS * (cosines.astype(np.float64) - 1))
    if len(classes) < 2 or near.shape[1] == 0:
        ones = np.ones(len(labels))
        return Findings(
            wrong=ones < 0, best=labels, confidence=ones, own=ones, mean_neighbor_similarity=mean_neighbor_similarity
        )
    if len(labels) * len(classes) > config.max_cells:
        return _by_votes(classes, codes, codes[near], weights, mean_neighbor_similarity, config)
    votes = np.zeros((len(labels), len(classes)))
    np.add.at(votes, (np.arange(len(labels))[:, None], codes[near]), weights)
    votes /= votes.sum(axis=1, keepdims=True)
    probabilities = (votes + out_of_fold(embeddings, codes, config.folds, seed)) / 2
    best = probabilities.argmax(axis=1)
    rows = np.arange(len(labels))
    confidence, own = probabilities[rows, best], probabilities[rows, codes]
    return Findings(
        wrong=_confidently_wrong(codes, probabilities) & _beyond(confidence, own, config),
        best=classes[best],
        confidence=confidence,
        own=own,
        mean_neighbor_similarity=mean_neighbor_similarity,
    )


def out_of_fold(embeddings: np.ndarray, codes: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return class probabilities, float64 (n, classes), each from a classifier that was not trained on the image."""
    linear_model = _sklearn()
    vectors = embeddings.astype(np.float32)
    probabilities = np.full((len(codes), int(codes.max()) + 1), 1e-9)
    fold = _stratified(codes, folds, seed)
    for number in range(folds):
        held = fold == number
        if not held.any() or len(np.unique(codes[~held])) < 2:
            continue
        model = linear_model.LogisticRegression(C=INVERSE_PENALTY, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # early termination of the solver hardly changes the ranking
            model.fit(vectors[~held], codes[~held])
        probabilities[np.ix_(held, model.classes_)] += model.predict_proba(vectors[held])
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def _stratified(codes: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return each row's fold, int64 (n,), stratified by class."""
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    fold = np.empty(len(codes), dtype=np.int64)
    fold[order] = np.arange(len(codes)) % folds
    return fold


def _confidently_wrong(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        raise UserError(f"finding label errors requires the package cleanlab; {install_command('clean')}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        issues = find_label_issues(codes, probabilities, filter_by="confident_learning", n_jobs=1)
    return np.asarray(issues, dtype=bool)


def _beyond(confidence: np.ndarray, own: np.ndarray, config: NoiseConfig) -> np.ndarray:
    return (confidence >= config.confidence) & (own < config.own)


def _by_votes(
    classes: np.ndarray,
    codes: np.ndarray,
    voted: np.ndarray,
    weights: np.ndarray,
    mean_neighbor_similarity: np.ndarray,
    config: NoiseConfig,
) -> Findings:
    """Check labels only by the neighbors: sparse, O(images x neighbors)."""
    rows, count = voted.shape
    total = weights.sum(axis=1)
    order = np.argsort(voted, axis=1, kind="stable")
    sorted_votes, sorted_weights = np.take_along_axis(voted, order, 1), np.take_along_axis(weights, order, 1)
    new = np.concatenate([np.ones((rows, 1), bool), sorted_votes[:, 1:] != sorted_votes[:, :-1]], axis=1)
    run = np.cumsum(new, axis=1) - 1
    sums = np.zeros((rows, count))
    np.add.at(sums, (np.arange(rows)[:, None], run), sorted_weights)
    best_run = sums.argmax(axis=1)
    place = (run == best_run[:, None]).argmax(axis=1)
    best = sorted_votes[np.arange(rows), place]
    confidence = sums[np.arange(rows), best_run] / total
    own = (weights * (voted == codes[:, None])).sum(axis=1) / total
    wrong = (best != codes) & _beyond(confidence, own, config)
    return Findings(
        wrong=wrong,
        best=classes[best],
        confidence=confidence,
        own=own,
        mean_neighbor_similarity=mean_neighbor_similarity,
    )


def _sklearn() -> Any:
    try:
        from sklearn import linear_model
    except ImportError:
        raise UserError(f"finding label errors requires the package scikit-learn; {install_command('clean')}") from None
    return linear_model
