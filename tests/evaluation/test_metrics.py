"""Every metric compared with scikit-learn or a plain loop of its definition; as a script, it prints the table of
docs/explanation/evaluation.md."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from landmark.config import UserError
from landmark.evaluation.bootstrap import Resampled, intervals, weights_of
from landmark.evaluation.comparison import compare, mcnemar
from landmark.evaluation.metrics import (
    calibration,
    class_bands,
    gap,
    gap_by_chance,
    gap_order,
    rejection_auroc,
    rejection_threshold,
)
from landmark.evaluation.predictions import Predictions
from landmark.evaluation.summary import metrics_of, tally_of
from tests.support.predicted import predictions_of, random_predictions

cases = st.integers(2, 8).flatmap(
    lambda classes: st.integers(1, 40).flatmap(
        lambda rows: st.tuples(
            hnp.arrays(np.int64, rows, elements=st.integers(-1, classes - 1)),
            # Few values, so that scores tie.
            hnp.arrays(np.float64, (rows, classes), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0])),
        )
    )
)


def delf_gap(predictions: Predictions) -> float:
    """DELF's definition, row by row: sort by score, then id, then class; sum precision@i over the right ones."""
    rows = sorted(
        zip(
            (-predictions.scores[:, 0].astype(float)).tolist(),
            predictions.image_ids.tolist(),
            predictions.guesses[:, 0].tolist(),
            predictions.labels.tolist(),
            strict=True,
        )
    )
    right, total = 0, 0.0
    for place, (_, _, guess, label) in enumerate(rows, 1):
        if guess == label:
            right += 1
            total += right / place
    return total / max(sum(label >= 0 for *_, label in rows), 1)


def our_gap(predictions: Predictions) -> float:
    order = gap_order(predictions.scores[:, 0], predictions.image_ids, predictions.guesses[:, 0])
    return gap((predictions.top(1) & predictions.known)[order], int(predictions.known.sum()))


@given(cases, st.randoms(use_true_random=False))
def test_gap_is_delf_s_ties_included(case, random):
    labels, logits = case
    ids = [f"{number:04x}" for number in range(len(labels))]
    random.shuffle(ids)
    found = predictions_of(labels, logits, ids=ids)
    assert our_gap(found) == pytest.approx(delf_gap(found))


@given(st.integers(1, 60), st.data())
def test_gap_without_strangers_is_average_precision(rows, data):
    right = data.draw(hnp.arrays(bool, rows))
    if right.any():
        scores = np.linspace(1, 0, rows)
        expected = sklearn.metrics.average_precision_score(right, scores) * right.sum()
        assert gap(right, rows) * rows == pytest.approx(expected)


@given(cases)
def test_rejection_is_scikit_learn_s_auroc(case):
    found = predictions_of(*case)
    scores, known = found.scores[:, 0], found.known
    if known.any() and not known.all():
        assert rejection_auroc(scores, known) == pytest.approx(sklearn.metrics.roc_auc_score(known, scores))
    else:
        assert rejection_auroc(scores, known) is None


@given(cases)
def test_the_rejection_threshold_is_the_best_point_of_scikit_learn_s_curve(case):
    found = predictions_of(*case)
    scores, known = found.scores[:, 0], found.known
    best = rejection_threshold(scores, known)
    if not known.any() or known.all():
        assert best is None
        return
    false, true, _ = sklearn.metrics.roc_curve(known, scores, drop_intermediate=False)
    assert best["kept"] + best["refused"] - 1 == pytest.approx((true - false).max())
    assert (scores[known] >= best["threshold"]).mean() == pytest.approx(best["kept"])
    assert (scores[~known] < best["threshold"]).mean() == pytest.approx(best["refused"])


@given(cases)
def test_shares_and_macros_are_scikit_learn_s(case):
    labels, logits = case
    labels = np.maximum(labels, 0)
    found = predictions_of(labels, logits)
    classes = logits.shape[1]
    summary = metrics_of(found, tally_of(found, classes, (1, 2)), "test", np.ones(classes), samples=0)
    guesses, present = found.guesses[:, 0], np.unique(labels)
    options = {"labels": present, "average": "macro", "zero_division": 0}
    assert summary["top1"] == pytest.approx(sklearn.metrics.accuracy_score(labels, guesses))
    assert summary["macro_recall"] == pytest.approx(sklearn.metrics.recall_score(labels, guesses, **options))
    assert summary["macro_precision"] == pytest.approx(sklearn.metrics.precision_score(labels, guesses, **options))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = sklearn.metrics.log_loss(labels, shares, labels=range(classes))
    assert summary["loss"] == pytest.approx(expected, rel=1e-5)


@given(hnp.arrays(np.float64, 30, elements=st.floats(0, 1)), hnp.arrays(bool, 30))
def test_calibration_is_the_mean_of_the_bins_gaps(scores, right):
    found = calibration(scores, right)
    expected = 0.0
    for low, high in zip(found.low, found.high, strict=True):
        inside = (scores > low) & (scores <= high) if low else (scores >= 0) & (scores <= high)
        if inside.any():
            expected += inside.sum() / 30 * abs(right[inside].mean() - scores[inside].mean())
    assert found.error == pytest.approx(expected)
    assert found.rows.sum() == 30


def test_gap_by_chance_is_what_shuffling_gives():
    random = np.random.default_rng(0)
    right = np.zeros(50, bool)
    right[:20] = True
    drawn = [gap(random.permutation(right), 40) for _ in range(4000)]
    assert gap_by_chance(20 / 50, 19 / 49, 50, 40) == pytest.approx(np.mean(drawn), rel=0.01)


def test_bands_have_a_third_of_the_training_images_each():
    assert class_bands(np.array([10, 30, 20, 25, 0, 5])).tolist() == [2, 0, 1, 1, 2, 2]
    assert class_bands(np.array([7, 7, 7])).tolist() == [0, 1, 2]


def test_a_resample_s_metrics_are_those_of_the_rows_it_drew():
    found = random_predictions(60, 5, strangers=0.2)
    resampled = Resampled(found, (1, 3))
    for number in range(4):
        weights = weights_of(60, number, seed=1)
        drawn = resampled.metrics(weights)
        copies = found.take(np.repeat(np.arange(60), weights.astype(int)))
        # Copies are told apart, or they would be no rows of their own.
        tally = tally_of(copies, 5, (1, 3))
        summary = metrics_of(copies, tally, "test", np.ones(5), samples=0)
        for name in ("top1", "top3", "macro_recall", "ece", "rejection_auroc"):
            assert drawn[name] == pytest.approx(summary[name], rel=1e-6), name
        assert drawn["gap"] == pytest.approx(summary["gap"], abs=0.02)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = 0
    for seed in range(60):
        found = random_predictions(200, 4, right=0.5, seed=seed)
        interval = intervals(found, (1,), samples=200, seed=seed)["top1"]
        held += interval.low <= 0.5 + 0.5 * 0.25 <= interval.high
    assert held >= 45  # of 60; 95 % of them are 57, and the made-up share is not exact


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"), [(0, 0, 1.0), (0, 5, 0.0625), (3, 3, 1.0), (1, 9, 0.021484375)]
)
def test_mcnemar_is_the_binomial_test(only_a, only_b, expected):
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_mcnemar_of_many_is_the_corrected_chi_square():
    # 1 - CDF of chi square with one degree of freedom at (|700 - 600| - 1)^2 / 1300, from a table of the error function
    assert mcnemar(700, 600) == pytest.approx(0.00604, abs=2e-4)
    assert mcnemar(600, 700) == mcnemar(700, 600)


def test_models_are_compared_row_by_row():
    a, b = (random_predictions(300, 6, right=share, seed=3) for share in (0.4, 0.8))
    found = compare(a, b, (1, 5), samples=200)
    right_a, right_b = a.top(1), b.top(1)
    assert (found.both_right, found.only_a) == ((right_a & right_b).sum(), (right_a & ~right_b).sum())
    assert found.both_right + found.only_a + found.only_b + found.both_wrong == 300
    assert found.mcnemar_p < 0.001
    top1 = found.differences["top1"]
    assert top1.difference == pytest.approx(right_a.mean() - right_b.mean())
    assert top1.interval.low < top1.difference < top1.interval.high < 0
    assert found.differences["gap"].a == pytest.approx(delf_gap(a))
    same = compare(a, a, (1,), samples=50)
    assert same.mcnemar_p == 1.0 and same.differences["top1"].interval.low == 0.0
    with pytest.raises(UserError, match="different images") as refused:
        compare(a, b.take(np.arange(10)), (1,))
    text = str(refused.value)
    assert "290 images are only in the first model's predictions" in text and "\n" not in text
    relabelled = dataclasses.replace(b, labels=np.where(np.arange(300) < 7, (b.labels + 1) % 6, b.labels))
    with pytest.raises(UserError, match="different labels for 7 of 300 images"):
        compare(a, relabelled, (1,))


def test_predictions_survive_a_table_and_parts_join_once():
    found = random_predictions(40, 5, strangers=0.3)
    again = Predictions.from_table(found.to_table())
    for name in ("samples", "image_ids", "labels", "guesses", "scores", "losses"):
        assert np.array_equal(getattr(found, name), getattr(again, name), equal_nan=name == "losses")
    parts = [found.take(np.arange(start, 40, 3)) for start in range(3)]
    assert np.array_equal(Predictions.joined(parts).guesses, found.guesses)
    with pytest.raises(ValueError, match="twice"):
        Predictions.joined([found, parts[0]])


def agreement() -> list[tuple[str, str, float, float]]:
    """Return measure, whose, ours and theirs on 2,000 made-up images of 50 classes, a fifth without a landmark."""
    found = random_predictions(2000, 50, strangers=0.2)
    known = found.of_landmarks()
    summary = metrics_of(found, tally_of(found, 50, (1, 5)), "test", np.ones(50), samples=0)
    labels, guesses = known.labels, known.guesses[:, 0]
    shares = np.zeros((len(known), 50))
    np.put_along_axis(shares, known.guesses, known.scores, axis=1)
    macro = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    sk = sklearn.metrics
    ap = sk.average_precision_score(found.top(1) & found.known, found.scores[:, 0])
    return [
        ("top-1", "accuracy_score", summary["top1"], sk.accuracy_score(labels, guesses)),
        (
            "top-5",
            "top_k_accuracy_score",
            summary["top5"],
            sk.top_k_accuracy_score(labels, shares, k=5, labels=range(50)),
        ),
        ("macro recall", "recall_score", summary["macro_recall"], sk.recall_score(labels, guesses, **macro)),
        (
            "macro precision",
            "precision_score",
            summary["macro_precision"],
            sk.precision_score(labels, guesses, **macro),
        ),
        (
            "rejection AUROC",
            "roc_auc_score",
            summary["rejection_auroc"],
            sk.roc_auc_score(found.known, found.scores[:, 0]),
        ),
        ("GAP", "average_precision_score x share right", summary["gap"], ap * found.top(1).sum() / found.known.sum()),
        ("GAP", "DELF's definition as a loop", summary["gap"], delf_gap(found)),
    ]


if __name__ == "__main__":
    print(f"{'measure':18}{'against':40}{'ours':>12}{'theirs':>12}{'difference':>12}")
    for name, whose, ours, theirs in agreement():
        print(f"{name:18}{whose:40}{ours:12.6f}{theirs:12.6f}{abs(ours - theirs):12.1e}")
