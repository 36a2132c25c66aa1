"""Metrics over stored predictions: GAP, calibration, rejection, and bands of class frequency.

All functions take arrays of n images and are exact, including ties. Tests compare them with scikit-learn and plain
loops.
"""

from dataclasses import dataclass

import numpy as np

BINS = 15
"""Number of confidence bins of equal width, as in Guo et al. 2017."""
BANDS = ("head", "middle", "tail")


def gap_order(scores: np.ndarray, image_ids: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the order of predictions for GAP: score descending, then image id, then class; int64 (n,).

    scores float (n,), image_ids str (n,), predicted int (n,): one prediction per image. Ties are ordered as in DELF
    (`delf/python/datasets/google_landmarks_dataset/metrics.py`).
    """
    return np.lexsort((predicted, image_ids, -scores.astype(np.float64)))


def gap(correct: np.ndarray, landmarks: int) -> float:
    """Return the global average precision: the sum of precision@i over the correct predictions, divided by `landmarks`.

    correct: bool (n,), in `gap_order`. Predictions for images without a landmark are incorrect. landmarks: number of
    images that show one. The definition is that of the Google Landmark Recognition challenges (Perronnin et al. 2009,
    "micro AP").
    """
    correct = np.asarray(correct, dtype=np.float64)
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    return float((precision * correct).sum() / max(landmarks, 1))


def gap_by_chance(accuracy: float, others: float, rows: int, landmarks: int) -> float:
    """Return the expected GAP of `rows` predictions with uninformative scores.

    accuracy: probability that a prediction is correct. others: probability that another one is correct, given that this
    one is. At position i the expected precision is (1 + (i - 1) x others) / i.
    """
    if not rows or not landmarks:
        return 0.0
    harmonic = float((1.0 / np.arange(1, rows + 1)).sum())
    return accuracy * (harmonic * (1 - others) + rows * others) / landmarks


@dataclass(kw_only=True, frozen=True, eq=False)
class Calibration:
    """Accuracy per confidence bin."""

    low: np.ndarray
    """Lower bounds of the bins, float (BINS,)."""
    high: np.ndarray
    """Upper bounds."""
    rows: np.ndarray
    """Images per bin, int64 (BINS,)."""
    confidence: np.ndarray
    """Mean score, NaN in an empty bin."""
    accuracy: np.ndarray
    """Fraction of correct predictions, NaN in an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| of the images' bins (Naeini et al. 2015)."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.rows) / max(self.rows.sum(), 1))


def confidence_bins(scores: np.ndarray) -> np.ndarray:
    """Return the bin of each score in [0, 1], int64 (n,). Bins are (low, high]; the first one includes 0."""
    return np.clip(np.ceil(scores.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)


def calibration(scores: np.ndarray, correct: np.ndarray) -> Calibration:
    """Return the calibration of top-1 predictions: scores float (n,) in [0, 1], correct bool (n,)."""
    bins = confidence_bins(scores)
    rows = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (scores, correct)]
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (total / rows for total in sums)
    ends = np.linspace(0.0, 1.0, BINS + 1)
    return Calibration(low=ends[:-1], high=ends[1:], rows=rows, confidence=confidence, accuracy=accuracy)


def rejection_auroc(scores: np.ndarray, has_landmark: np.ndarray) -> float | None:
    """Return the area under the ROC curve of the score for images with and without a landmark. Ties count half.

    scores float (n,), has_landmark bool (n,). None if either kind is missing. Computed from ranks (Mann and Whitney 1947).
    """
    positives = int(has_landmark.sum())
    negatives = len(has_landmark) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[has_landmark].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def rejection_threshold(scores: np.ndarray, has_landmark: np.ndarray) -> dict[str, float] | None:
    """Return the score threshold that best separates images with and without a landmark (Youden's J).

    scores float (n,), has_landmark bool (n,). Keys: threshold; kept (fraction of the images with a landmark whose score is at
    least the threshold); refused (fraction of the others below it). J is the maximum of kept + refused - 1. The lowest
    such threshold is used. None if either kind is missing.
    """
    positives = int(has_landmark.sum())
    negatives = len(has_landmark) - positives
    if not positives or not negatives:
        return None
    values, place = np.unique(scores, return_inverse=True)
    landmarks = np.bincount(place, weights=has_landmark, minlength=len(values))
    others = np.bincount(place, weights=~has_landmark, minlength=len(values))
    kept = (positives - np.cumsum(landmarks) + landmarks) / positives
    refused = (np.cumsum(others) - others) / negatives
    best = int(np.argmax(kept + refused))
    return {"threshold": float(values[best]), "kept": float(kept[best]), "refused": float(refused[best])}


def class_bands(train_counts: np.ndarray) -> np.ndarray:
    """Return each class's band, int64 (classes,): 0 head (many-shot), 1 middle (medium-shot), 2 tail (few-shot).

    Classes are sorted by training images, descending, and cut at one third and two thirds of all training images, so
    each band has about a third of the images. A class that spans a cut belongs to the band in which it begins.
    """
    counts = np.asarray(train_counts, dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    bands = np.empty(len(counts), dtype=np.int64)
    bands[order] = np.minimum(3 * before // max(int(counts.sum()), 1), 2)
    bands[counts == 0] = 2
    return bands
