"""Confidence intervals by the bootstrap (Efron 1979): images are drawn again with replacement, all metrics of one draw at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from landmark.cpus import available_cpus
from landmark.evaluation.measures import BINS, confidence_bins, gap_order
from landmark.evaluation.predictions import Predictions

CONFIDENCE = 0.95


@dataclass(kw_only=True, frozen=True)
class Interval:
    """Where a metric would lie had other images been drawn, with a confidence of 95 %."""

    low: float
    high: float


def percentile_interval(values: np.ndarray) -> Interval:
    """Return the percentile interval of a metric's resampled values, NaN ones left out."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(low=float(low), high=float(high))


def weights_of(rows: int, number: int, seed: int) -> np.ndarray:
    """Return how often each image is in the resample of that number, float64 (rows,)."""
    drawn = np.random.default_rng([seed, number]).integers(0, rows, rows, dtype=np.int32)
    return np.bincount(drawn, minlength=rows).astype(np.float64)


def resample(
    rows: int, samples: int, seed: int, metrics: Callable[[np.ndarray], dict[str, float]]
) -> dict[str, np.ndarray]:
    """Return each metric of each resample, float (samples,), by name; threads, as numpy computes without Python's lock."""
    with ThreadPoolExecutor(available_cpus()) as threads:
        found = list(threads.map(lambda number: metrics(weights_of(rows, number, seed)), range(samples)))
    return {name: np.array([one[name] for one in found]) for name in found[0]}


class Resampled:
    """The metrics of resamples of one set of predictions; what does not depend on the resample is computed once."""

    def __init__(self, predictions: Predictions, topk: tuple[int, ...]) -> None:
        best, scores = predictions.guesses[:, 0], predictions.scores[:, 0]
        known = predictions.known
        right = predictions.top(1) & known
        self.known = known.astype(np.float64)
        self.hits = {f"top{k}": (predictions.top(k) & known).astype(np.float64) for k in topk}
        self.order = gap_order(scores, predictions.image_ids, best)
        self.right_places = np.flatnonzero(right[self.order])
        self.stranger_places = np.flatnonzero(~known[self.order])
        self.bins = confidence_bins(scores)
        self.overconfidence = np.where(known, scores.astype(np.float64) - right, 0.0)
        _, classes = np.unique(predictions.labels[known], return_inverse=True)
        self.classes = int(classes.max(initial=-1)) + 1
        # Twice the class, plus one where the image is recognised: one count gives both a class's images and its hits.
        self.of_landmarks = np.flatnonzero(known)
        self.outcomes = 2 * classes + right[known]

    def metrics(self, weights: np.ndarray) -> dict[str, float]:
        """Return each metric of one resample; weights as `weights_of` returns them."""
        landmarks = max(float(weights @ self.known), 1.0)
        found = {name: float(weights @ hits) / landmarks for name, hits in self.hits.items()}
        found["macro_recall"] = self._macro_recall(weights)
        found |= self._ranked(weights, landmarks)
        gaps = np.bincount(self.bins, weights=weights * self.overconfidence, minlength=BINS)
        found["ece"] = float(np.abs(gaps).sum()) / landmarks
        return found

    def _macro_recall(self, weights: np.ndarray) -> float:
        counts = np.bincount(self.outcomes, weights=weights[self.of_landmarks], minlength=2 * self.classes)
        missed, hits = counts.reshape(-1, 2).T
        support = missed + hits
        drawn = support > 0
        return float((hits[drawn] / support[drawn]).mean()) if drawn.any() else np.nan

    def _ranked(self, weights: np.ndarray, landmarks: float) -> dict[str, float]:
        """Return GAP and, where there are images without a landmark, the rejection's AUROC, in one order of the scores."""
        drawn = weights[self.order]
        seen = np.cumsum(drawn)
        right = drawn[self.right_places]
        precision = np.cumsum(right) / np.maximum(seen[self.right_places], 1)
        found = {"gap": float(precision @ right) / landmarks}
        if len(self.stranger_places):
            strangers = drawn[self.stranger_places]
            total = np.cumsum(strangers)
            above = seen[self.stranger_places] - total
            found["rejection_auroc"] = float(above @ strangers) / (landmarks * max(float(total[-1]), 1.0))
        return found


def intervals(
    predictions: Predictions, topk: tuple[int, ...], *, samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Return the 95 % intervals of top-k, macro recall, GAP, calibration error and rejection, by name.

    Copies of an image are one place in GAP's order; among equal scores the order decides AUROC. Macro recall is over the
    classes of a resample. O(images) memory, whatever the number of classes.
    """
    found = resample(len(predictions), samples, seed, Resampled(predictions, topk).metrics)
    return {name: percentile_interval(values) for name, values in found.items()}
