"""Each metric compared with scikit-learn or a plain loop of its definition.

As a script, this module prints the table in docs/explanation/evaluation.md.
"""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from landmark.config import UserError
from landmark.evaluation.bootstrap import BootstrapReplicates, intervals, weights_of
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
from landmark.evaluation.summary import accumulate, metrics_of
from tests.support.predicted import predictions_of, random_predictions

cases = st.integers(2, 8).flatmap(
    lambda classes: st.integers(1, 40).flatmap(
        lambda rows: st.tuples(
            hnp.arrays(np.int64, rows, elements=st.integers(-1, classes - 1)),
            # Few values, so that scores are tied.
            hnp.arrays(np.float64, (rows, classes), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0])),
        )
    )
)


def delf_gap(predictions: Predictions) -> float:
    """DELF's definition, row by row: sort by score, ID and class, and sum precision@i over the correct rows."""
    rows = sorted(
        zip(
            (-predictions.scores[:, 0].astype(float)).tolist(),
            predictions.image_ids.tolist(),
            predictions.top_k_labels[:, 0].tolist(),
            predictions.labels.tolist(),
            strict=True,
        )
    )
    correct, total = 0, 0.0
    for rank, (_, _, predicted, label) in enumerate(rows, 1):
        if predicted == label:
            correct += 1
            total += correct / rank
    return total / max(sum(label >= 0 for *_, label in rows), 1)


def landmark_gap(predictions: Predictions) -> float:
    order = gap_order(predictions.scores[:, 0], predictions.image_ids, predictions.top_k_labels[:, 0])
    return gap((predictions.top(1) & predictions.has_landmark)[order], int(predictions.has_landmark.sum()))


@given(cases, st.randoms(use_true_random=False))
def test_gap_matches_delf_including_ties(case, random):
    labels, logits = case
    ids = [f"{number:04x}" for number in range(len(labels))]
    random.shuffle(ids)
    found = predictions_of(labels, logits, ids=ids)
    assert landmark_gap(found) == pytest.approx(delf_gap(found))


@given(st.integers(1, 60), st.data())
def test_gap_without_distractors_is_average_precision(rows, data):
    correct = data.draw(hnp.arrays(bool, rows))
    if correct.any():
        scores = np.linspace(1, 0, rows)
        expected = sklearn.metrics.average_precision_score(correct, scores) * correct.sum()
        assert gap(correct, rows) * rows == pytest.approx(expected)


@given(cases)
def test_rejection_auroc_matches_scikit_learn(case):
    found = predictions_of(*case)
    scores, has_landmark = found.scores[:, 0], found.has_landmark
    if has_landmark.any() and not has_landmark.all():
        assert rejection_auroc(scores, has_landmark) == pytest.approx(
            sklearn.metrics.roc_auc_score(has_landmark, scores)
        )
    else:
        assert rejection_auroc(scores, has_landmark) is None


@given(cases)
def test_the_rejection_threshold_is_the_best_point_of_the_roc_curve(case):
    found = predictions_of(*case)
    scores, has_landmark = found.scores[:, 0], found.has_landmark
    best = rejection_threshold(scores, has_landmark)
    if not has_landmark.any() or has_landmark.all():
        assert best is None
        return
    false, true, _ = sklearn.metrics.roc_curve(has_landmark, scores, drop_intermediate=False)
    assert best["kept"] + best["refused"] - 1 == pytest.approx((true - false).max())
    assert (scores[has_landmark] >= best["threshold"]).mean() == pytest.approx(best["kept"])
    assert (scores[~has_landmark] < best["threshold"]).mean() == pytest.approx(best["refused"])


@given(cases)
def test_accuracy_macro_averages_and_loss_match_scikit_learn(case):
    labels, logits = case
    labels = np.maximum(labels, 0)
    found = predictions_of(labels, logits)
    classes = logits.shape[1]
    summary = metrics_of(found, accumulate(found, classes, (1, 2)), "test", np.ones(classes), samples=0)
    predicted, present = found.top_k_labels[:, 0], np.unique(labels)
    options = {"labels": present, "average": "macro", "zero_division": 0}
    assert summary["top1"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert summary["macro_recall"] == pytest.approx(sklearn.metrics.recall_score(labels, predicted, **options))
    assert summary["macro_precision"] == pytest.approx(sklearn.metrics.precision_score(labels, predicted, **options))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = sklearn.metrics.log_loss(labels, probabilities, labels=range(classes))
    assert summary["loss"] == pytest.approx(expected, rel=1e-5)


@given(hnp.arrays(np.float64, 30, elements=st.floats(0, 1)), hnp.arrays(bool, 30))
def test_the_calibration_error_is_the_mean_gap_of_the_bins(scores, correct):
    found = calibration(scores, correct)
    expected = 0.0
    for low, high in zip(found.low, found.high, strict=True):
        inside = (scores > low) & (scores <= high) if low else (scores >= 0) & (scores <= high)
        if inside.any():
            expected += inside.sum() / 30 * abs(correct[inside].mean() - scores[inside].mean())
    assert found.error == pytest.approx(expected)
    assert found.rows.sum() == 30


def test_gap_by_chance_is_the_mean_over_random_orders():
    random = np.random.default_rng(0)
    correct = np.zeros(50, bool)
    correct[:20] = True
    shuffled = [gap(random.permutation(correct), 40) for _ in range(4000)]
    assert gap_by_chance(20 / 50, 19 / 49, 50, 40) == pytest.approx(np.mean(shuffled), rel=0.01)


def test_each_band_has_a_third_of_the_training_images():
    assert class_bands(np.array([10, 30, 20, 25, 0, 5])).tolist() == [2, 0, 1, 1, 2, 2]
    assert class_bands(np.array([7, 7, 7])).tolist() == [0, 1, 2]


def test_the_metrics_of_a_replicate_are_those_of_its_sampled_rows():
    found = random_predictions(60, 5, distractors=0.2)
    replicates = BootstrapReplicates(found, (1, 3))
    for number in range(4):
        weights = weights_of(60, number, seed=1)
        replicate = replicates.metrics(weights)
        sampled_rows = found.take(np.repeat(np.arange(60), weights.astype(int)))
        # Repeated rows count as separate rows.
        accumulator = accumulate(sampled_rows, 5, (1, 3))
        summary = metrics_of(sampled_rows, accumulator, "test", np.ones(5), samples=0)
        for name in ("top1", "top3", "macro_recall", "ece", "rejection_auroc"):
            assert replicate[name] == pytest.approx(summary[name], rel=1e-6), name
        assert replicate["gap"] == pytest.approx(summary["gap"], abs=0.02)


def test_intervals_cover_the_true_value_at_about_the_stated_rate():
    covered = 0
    for seed in range(60):
        found = random_predictions(200, 4, correct=0.5, seed=seed)
        interval = intervals(found, (1,), samples=200, seed=seed)["top1"]
        covered += interval.low <= 0.5 + 0.5 * 0.25 <= interval.high
    assert covered >= 45  # of 60: 95% are 57, and the accuracy of the synthetic predictions is not exact


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"), [(0, 0, 1.0), (0, 5, 0.0625), (3, 3, 1.0), (1, 9, 0.021484375)]
)
def test_mcnemar_is_the_binomial_test(only_a, only_b, expected):
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_mcnemar_of_many_images_is_the_corrected_chi_square_test():
    # 1 - CDF of chi square with one degree of freedom at (|700 - 600| - 1)^2 / 1300, from a table of the error function
    assert mcnemar(700, 600) == pytest.approx(0.00604, abs=2e-4)
    assert mcnemar(600, 700) == mcnemar(700, 600)


def test_models_are_compared_row_by_row():
    a, b = (random_predictions(300, 6, correct=accuracy, seed=3) for accuracy in (0.4, 0.8))
    found = compare(a, b, (1, 5), samples=200)
    correct_a, correct_b = a.top(1), b.top(1)
    assert (found.both_correct, found.only_a) == ((correct_a & correct_b).sum(), (correct_a & ~correct_b).sum())
    assert found.both_correct + found.only_a + found.only_b + found.both_incorrect == 300
    assert found.mcnemar_p < 0.001
    top1 = found.differences["top1"]
    assert top1.difference == pytest.approx(correct_a.mean() - correct_b.mean())
    assert top1.interval.low < top1.difference < top1.interval.high < 0
    assert found.differences["gap"].a == pytest.approx(delf_gap(a))
    same = compare(a, a, (1,), samples=50)
    assert same.mcnemar_p == 1.0 and same.differences["top1"].interval.low == 0.0
    with pytest.raises(UserError, match="different images") as refused:
        compare(a, b.take(np.arange(10)), (1,))
    text = str(refused.value)
    assert "290 images are only in the first model's predictions" in text and "\n" not in text
    relabeled = dataclasses.replace(b, labels=np.where(np.arange(300) < 7, (b.labels + 1) % 6, b.labels))
    with pytest.raises(UserError, match="different labels for 7 of 300 images"):
        compare(a, relabeled, (1,))


def test_predictions_round_trip_through_a_table_and_join_once():
    found = random_predictions(40, 5, distractors=0.3)
    restored = Predictions.from_table(found.to_table())
    for name in ("samples", "image_ids", "labels", "top_k_labels", "scores", "losses"):
        assert np.array_equal(getattr(found, name), getattr(restored, name), equal_nan=name == "losses")
    shards = [found.take(np.arange(start, 40, 3)) for start in range(3)]
    assert np.array_equal(Predictions.joined(shards).top_k_labels, found.top_k_labels)
    with pytest.raises(ValueError, match="twice"):
        Predictions.joined([found, shards[0]])


def agreement() -> list[tuple[str, str, float, float]]:
    """Return metric, reference and both values for 2,000 synthetic images of 50 classes, a fifth without a landmark."""
    found = random_predictions(2000, 50, distractors=0.2)
    landmarks = found.of_landmarks()
    summary = metrics_of(found, accumulate(found, 50, (1, 5)), "test", np.ones(50), samples=0)
    labels, predicted = landmarks.labels, landmarks.top_k_labels[:, 0]
    probabilities = np.zeros((len(landmarks), 50))
    np.put_along_axis(probabilities, landmarks.top_k_labels, landmarks.scores, axis=1)
    macro = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    sk = sklearn.metrics
    ap = sk.average_precision_score(found.top(1) & found.has_landmark, found.scores[:, 0])
    return [
        ("top-1", "accuracy_score", summary["top1"], sk.accuracy_score(labels, predicted)),
        (
            "top-5",
            "top_k_accuracy_score",
            summary["top5"],
            sk.top_k_accuracy_score(labels, probabilities, k=5, labels=range(50)),
        ),
        ("macro recall", "recall_score", summary["macro_recall"], sk.recall_score(labels, predicted, **macro)),
        (
            "macro precision",
            "precision_score",
            summary["macro_precision"],
            sk.precision_score(labels, predicted, **macro),
        ),
        (
            "rejection AUROC",
            "roc_auc_score",
            summary["rejection_auroc"],
            sk.roc_auc_score(found.has_landmark, found.scores[:, 0]),
        ),
        (
            "GAP",
            "average_precision_score x fraction correct",
            summary["gap"],
            ap * found.top(1).sum() / found.has_landmark.sum(),
        ),
        ("GAP", "DELF's definition as a loop", summary["gap"], delf_gap(found)),
    ]


if __name__ == "__main__":
    print(f"{'metric':18}{'compared with':44}{'landmark':>12}{'other':>12}{'difference':>12}")
    for name, reference, landmark, other in agreement():
        print(f"{name:18}{reference:44}{landmark:12.6f}{other:12.6f}{abs(landmark - other):12.1e}")
