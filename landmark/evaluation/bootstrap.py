"""Bootstrap confidence intervals (Efron 1979): images are sampled with replacement, and each replicate has all metrics.

Images of one group, such as near-duplicates, are sampled together (cluster bootstrap), because they are not
independent.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from landmark.cpus import available_cpus
from landmark.evaluation.metrics import BINS, confidence_bins, gap_order
from landmark.evaluation.predictions import Predictions

CONFIDENCE = 0.95
MOVED = "moved"
"""Key in `BootstrapReplicates.metrics`: distance of the replicate's calibration gaps from those of all images."""


@dataclass(kw_only=True, frozen=True)
class Interval:
    """95% confidence interval of a metric."""

    low: float
    high: float


def percentile_interval(values: np.ndarray) -> Interval:
    """Return the percentile interval of a metric's bootstrap values, ignoring NaN."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(low=float(low), high=float(high))


def weights_of(rows: int, number: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return how often each image is in replicate `number`, float64 (rows,).

    groups: int (rows,), 0 to g - 1. Then g complete groups are sampled. None: images are sampled individually.
    """
    units = rows if groups is None else int(groups.max(initial=-1)) + 1
    drawn = np.random.default_rng([seed, number]).integers(0, units, units, dtype=np.int32)
    counts = np.bincount(drawn, minlength=units).astype(np.float64)
    return counts if groups is None else counts[groups]


def resample(
    rows: int,
    samples: int,
    seed: int,
    metrics: Callable[[np.ndarray], dict[str, float]],
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return each metric of each replicate, float (samples,), by name. Uses threads, because numpy releases the GIL.

    groups: any values (rows,) that are equal within a group, see `weights_of`. None: no groups.
    """
    codes = None if groups is None else np.unique(groups, return_inverse=True)[1]
    with ThreadPoolExecutor(available_cpus()) as threads:
        found = list(threads.map(lambda number: metrics(weights_of(rows, number, seed, codes)), range(samples)))
    return {name: np.array([one[name] for one in found]) for name in found[0]}


class BootstrapReplicates:
    """Computes the metrics of bootstrap replicates of one set of predictions. Invariant parts are computed once."""

    def __init__(self, predictions: Predictions, topk: tuple[int, ...]) -> None:
        best, scores = predictions.top_k_labels[:, 0], predictions.scores[:, 0]
        has_landmark = predictions.has_landmark
        correct = predictions.top(1) & has_landmark
        self.has_landmark = has_landmark.astype(np.float64)
        self.hits = {f"top{k}": (predictions.top(k) & has_landmark).astype(np.float64) for k in topk}
        self.order = gap_order(scores, predictions.image_ids, best)
        self.correct_places = np.flatnonzero(correct[self.order])
        self.distractor_places = np.flatnonzero(~has_landmark[self.order])
        self.bins = confidence_bins(scores)
        self.overconfidence = np.where(has_landmark, scores.astype(np.float64) - correct, 0.0)
        self.gaps = self._gaps(np.ones(len(best)), max(float(has_landmark.sum()), 1.0))
        _, classes = np.unique(predictions.labels[has_landmark], return_inverse=True)
        self.classes = int(classes.max(initial=-1)) + 1
        # Twice the class, plus one if the prediction is correct: one bincount gives both the images and hits per class.
        self.of_landmarks = np.flatnonzero(has_landmark)
        self.outcomes = 2 * classes + correct[has_landmark]

    def metrics(self, weights: np.ndarray) -> dict[str, float]:
        """Return all metrics of one replicate. weights: as returned by `weights_of`."""
        landmarks = max(float(weights @ self.has_landmark), 1.0)
        found = {name: float(weights @ hits) / landmarks for name, hits in self.hits.items()}
        found["macro_recall"] = self._macro_recall(weights)
        found |= self._ranked(weights, landmarks)
        gaps = self._gaps(weights, landmarks)
        found["ece"] = float(np.abs(gaps).sum())
        found[MOVED] = float(np.abs(gaps - self.gaps).sum())
        return found

    def _gaps(self, weights: np.ndarray, landmarks: float) -> np.ndarray:
        """Return each bin's confidence minus accuracy, times its fraction of the images, float64 (BINS,)."""
        return np.bincount(self.bins, weights=weights * self.overconfidence, minlength=BINS) / landmarks

    def _macro_recall(self, weights: np.ndarray) -> float:
        counts = np.bincount(self.outcomes, weights=weights[self.of_landmarks], minlength=2 * self.classes)
        missed, hits = counts.reshape(-1, 2).T
        support = missed + hits
        drawn = support > 0
        return float((hits[drawn] / support[drawn]).mean()) if drawn.any() else np.nan

    def _ranked(self, weights: np.ndarray, landmarks: float) -> dict[str, float]:
        """Return GAP and, if there are images without a landmark, the rejection AUROC, from one sort of the scores."""
        drawn = weights[self.order]
        seen = np.cumsum(drawn)
        correct = drawn[self.correct_places]
        precision = np.cumsum(correct) / np.maximum(seen[self.correct_places], 1)
        found = {"gap": float(precision @ correct) / landmarks}
        if len(self.distractor_places):
            distractors = drawn[self.distractor_places]
            total = np.cumsum(distractors)
            above = seen[self.distractor_places] - total
            found["rejection_auroc"] = float(above @ distractors) / (landmarks * max(float(total[-1]), 1.0))
        return found


def intervals(
    predictions: Predictions,
    topk: tuple[int, ...],
    *,
    samples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, Interval]:
    """Return the 95% intervals of top-k, macro recall, GAP, calibration error and rejection, by name.

    groups: values (n,) that are equal within a group. None: no groups. With a single group or image the result is {}.
    Repeated images of a replicate share one position in the order of GAP. For AUROC, the order decides among equal
    scores. Macro recall is over the classes of a replicate. Memory is O(images), independent of the number of classes.
    """
    if len(np.unique(np.arange(len(predictions)) if groups is None else groups)) < 2:
        return {}
    resampled = BootstrapReplicates(predictions, topk)
    found = resample(len(predictions), samples, seed, resampled.metrics, groups)
    has_landmark = predictions.has_landmark
    chance = calibrated_errors(
        predictions.scores[has_landmark, 0], samples, seed, None if groups is None else groups[has_landmark]
    )
    ece = calibration_interval(resampled.gaps, found.pop(MOVED), chance)
    return {name: ece if name == "ece" else percentile_interval(values) for name, values in found.items()}


def calibrated_errors(scores: np.ndarray, samples: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the calibration errors of a perfectly calibrated model with these scores, float (samples,).

    scores: float (n,). Each prediction is correct with its score as probability. One random number is used per group.
    This is consistency resampling (Broecker & Smith 2007).
    """
    bins, values = confidence_bins(scores), scores.astype(np.float64)
    codes = np.arange(len(scores)) if groups is None else np.unique(groups, return_inverse=True)[1]

    def error(number: int) -> float:
        drawn = np.random.default_rng([seed, number, 1]).random(int(codes.max(initial=-1)) + 1)[codes]
        gaps = np.bincount(bins, weights=values - (drawn < values), minlength=BINS)
        return float(np.abs(gaps).sum()) / max(len(scores), 1)

    with ThreadPoolExecutor(available_cpus()) as threads:
        return np.array(list(threads.map(error, range(samples))))


def calibration_interval(gaps: np.ndarray, moved: np.ndarray, chance: np.ndarray) -> Interval:
    """Return the interval of the calibration error, the sum of the bins' absolute gaps.

    gaps: of all images, float (BINS,). moved: distance of each replicate's gaps from them, the sum of the absolute
    differences, float (samples,). chance: as returned by `calibrated_errors`.

    Absolute values of noise add up, so the estimate is biased upward, and its replicates even more. Their percentiles
    can miss the true value completely. The error of the estimate is at most the sum of the gaps' absolute errors
    (triangle inequality). The bootstrap gives the distribution of that sum, also for a calibration error of zero. In
    small samples the rare errors of a confident model are missing, so the margin is at least that of a calibrated
    model. The interval is always valid, but wider than necessary if the model is far from calibrated.
    """
    margin = max(float(np.quantile(each, CONFIDENCE)) for each in (moved, chance))
    error = float(np.abs(gaps).sum())
    return Interval(low=max(error - margin, 0.0), high=min(error + margin, 1.0))
