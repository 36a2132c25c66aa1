"""Confidence intervals cover the true value at their stated rate, also for calibration error and for groups."""

import numpy as np
import pytest

from landmark.evaluation.bootstrap import Interval, intervals, weights_of
from landmark.evaluation.comparison import compare
from landmark.evaluation.metrics import calibration, gap, gap_order
from landmark.evaluation.predictions import Predictions
from tests.support.predicted import random_predictions

SETS = 100
MIN_COVERED = 90
"""Minimum number of SETS intervals at 95% that cover the true value. Fewer have a probability of 1% (binomial)."""


def scored(scores: np.ndarray, correct: np.ndarray) -> Predictions:
    """Return predictions of two classes with these top-1 scores, correct or not."""
    labels = np.where(correct, 1, 0).astype(np.int32)
    both = np.stack([scores, 1 - scores], axis=1).astype(np.float32)
    return Predictions(
        samples=np.arange(len(scores)),
        image_ids=np.array([f"{row:08x}" for row in range(len(scores))]),
        labels=labels,
        top_k_labels=np.tile(np.array([1, 0], np.int32), (len(scores), 1)),
        scores=both,
        losses=np.full(len(scores), np.nan, np.float32),
    )


def scores_of(random: np.random.Generator, rows: int, kind: str) -> np.ndarray:
    """Return scores of a model that is confident for most images, or uniformly distributed scores."""
    return random.beta(8, 1, rows) if kind == "confident" else random.uniform(0.2, 1, rows)


def probability_of_correct(scores: np.ndarray, shift: float) -> np.ndarray:
    """Return the probability that a prediction is correct. For a calibrated model, it is the score."""
    return np.clip(scores - shift, 0, 1)


def covers(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


@pytest.mark.parametrize(
    ("kind", "shift", "rows"),
    [("confident", 0.0, 120), ("uniform", 0.0, 600), ("confident", 0.05, 600), ("uniform", 0.25, 300)],
)
def test_the_calibration_error_interval_covers_the_true_value(kind: str, shift: float, rows: int):
    large = scores_of(np.random.default_rng(0), 1_000_000, kind)
    true = calibration(large, probability_of_correct(large, shift)).error  # the accuracy without sampling noise
    assert (true < 0.001) == (shift == 0)
    count, estimates = 0, 0
    for seed in range(SETS):
        random = np.random.default_rng([1, seed])
        scores = scores_of(random, rows, kind)
        found = scored(scores, random.random(rows) < probability_of_correct(scores, shift))
        interval = intervals(found, (1,), samples=100, seed=seed)["ece"]
        estimate = calibration(found.scores[:, 0], found.top(1)).error
        estimates += covers(interval, estimate)
        count += covers(interval, true)
    assert estimates == SETS and count >= MIN_COVERED
    if shift == 0.25:  # the interval shows that the model is badly calibrated
        assert interval.low > 0.08 and interval.high < 0.45


def test_the_bootstrap_samples_whole_groups():
    groups = np.array([0, 0, 0, 1, 2, 2])
    for number in range(20):
        weights = weights_of(6, number, 0, groups)
        assert len(set(weights[:3])) == 1 and weights[4] == weights[5]
        assert weights[0] + weights[3] + weights[4] == 3
    assert weights_of(6, 3, 0).sum() == 6


def test_intervals_of_groups_cover_the_true_value():
    """The ten images of a group are duplicates: all are correct or all are incorrect, with the same score."""
    counts = dict.fromkeys(("top1", "gap", "ece"), 0)
    ungrouped = 0
    # The expected GAP of so few groups is the mean over many such sets.
    sets = [_grouped(seed) for seed in range(1000, 1300)]
    truth = {"top1": 0.6, "ece": 0.0, "gap": float(np.mean([_gap(found) for found, _ in sets]))}
    for seed in range(SETS):
        found, groups = _grouped(seed)
        got = intervals(found, (1,), samples=100, seed=seed, groups=groups)
        for name, value in truth.items():
            counts[name] += covers(got[name], value)
        ungrouped += covers(intervals(found, (1,), samples=100, seed=seed)["top1"], 0.6)
    # Percentile intervals of 40 groups cover the true value slightly less often than 95%.
    assert min(counts[name] for name in truth) >= 86, counts
    assert ungrouped < 60  # far too narrow if images count as independent observations


def _grouped(seed: int, count: int = 40, size: int = 10) -> tuple[Predictions, np.ndarray]:
    random = np.random.default_rng([2, seed])
    scores = random.uniform(0.4, 0.8, count)
    correct = random.random(count) < scores
    groups = np.repeat(np.arange(count), size)
    return scored(scores[groups], correct[groups]), groups


def _gap(found: Predictions) -> float:
    order = gap_order(found.scores[:, 0], found.image_ids, found.top_k_labels[:, 0])
    return gap(found.top(1)[order], len(found))


def test_one_image_or_one_group_has_no_interval():
    found = random_predictions(8, 3)
    assert intervals(found.take(np.arange(1)), (1,), samples=20) == {}
    assert intervals(found, (1,), samples=20, groups=np.zeros(8, int)) == {}
    assert set(intervals(found, (1,), samples=20)) == {"top1", "macro_recall", "gap", "ece"}


def test_a_comparison_samples_whole_groups():
    a, b = (random_predictions(120, 4, correct=correct, seed=5) for correct in (0.5, 0.7))
    groups = np.arange(120) // 12
    wide, narrow = (
        compare(a, b, (1,), samples=300, groups=each).differences["top1"].interval for each in (groups, None)
    )
    assert (wide.low, wide.high) != (narrow.low, narrow.high)
    duplicates = a.take(np.repeat(np.arange(12), 10)), b.take(np.repeat(np.arange(12), 10))
    wide, narrow = (
        compare(*duplicates, (1,), samples=300, groups=each).differences["top1"].interval
        for each in (np.repeat(np.arange(12), 10), None)
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low) > 0
