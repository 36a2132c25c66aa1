"""Metrics agree with scikit-learn, accumulators merge, and baselines do not depend on the images."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from landmark.evaluation import ConfusionAccumulator, majority_top_k, random_top_k, summarize

scores = st.integers(2, 9).flatmap(
    lambda classes: st.integers(1, 40).flatmap(
        lambda rows: st.tuples(
            hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)),
            hnp.arrays(np.float64, (rows, classes), elements=st.floats(0, 1), unique=True),
        )
    )
)


def accumulate(labels: np.ndarray, logits: np.ndarray, topk: tuple[int, ...] = (1, 3, 10)) -> ConfusionAccumulator:
    accumulator = ConfusionAccumulator(logits.shape[1], topk)
    accumulator.update(labels, np.argsort(-logits, axis=1)[:, : accumulator.max_k])
    return accumulator


@given(scores)
def test_metrics_agree_with_scikit_learn(case):
    labels, logits = case
    classes = logits.shape[1]
    accumulator, predictions = accumulate(labels, logits), logits.argmax(axis=1)
    assert accumulator.top_k(1) == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions))
    if classes > 3:
        expected = sklearn.metrics.top_k_accuracy_score(labels, logits, k=3, labels=range(classes))
        assert accumulator.top_k(3) == pytest.approx(expected)
    assert accumulator.top_k(10) == 1.0
    present = np.unique(labels)
    expected = sklearn.metrics.recall_score(labels, predictions, labels=present, average="macro", zero_division=0)
    assert accumulator.macro_recall() == pytest.approx(expected)
    matrix = np.zeros((classes, classes), int)
    cells = accumulator.confusion().to_pydict()
    matrix[cells["true"], cells["predicted"]] = cells["count"]
    assert np.array_equal(matrix, sklearn.metrics.confusion_matrix(labels, predictions, labels=range(classes)))


@given(scores, st.integers(0, 40))
def test_merged_accumulators_equal_one_over_all_rows(case, cut):
    labels, logits = case
    complete, first, second = (
        accumulate(labels[s], logits[s]) for s in (slice(None), slice(None, cut), slice(cut, None))
    )
    first.merge(second)
    assert first.hits == complete.hits and first.rows == complete.rows
    assert first.confusion().equals(complete.confusion())
    assert np.array_equal(first.correct, complete.correct)


def test_a_class_without_rows_has_no_recall():
    accumulator = accumulate(np.array([0, 0, 2]), np.eye(3)[[0, 2, 2]])
    table = accumulator.per_class(["a", "b", "c"], np.array([5, 6, 7])).to_pylist()
    assert [row["recall"] for row in table] == [0.5, None, 1.0]
    assert [row["precision"] for row in table] == [1.0, None, 0.5]
    assert accumulator.macro_recall() == 0.75


@given(hnp.arrays(np.int64, 8, elements=st.integers(0, 30)), hnp.arrays(np.int64, 8, elements=st.integers(0, 30)))
def test_the_majority_baseline_predicts_the_largest_training_classes(train, counts):
    labels = np.repeat(np.arange(8), counts)
    predicted = sorted(range(8), key=lambda label: (-train[label], label))[:3]
    expected = np.isin(labels, predicted).mean() if len(labels) else 0.0
    assert majority_top_k(train, counts, 3) == pytest.approx(expected)


def test_the_random_baseline_matches_the_reference_study():
    assert random_top_k(100, 1) == 0.01
    assert random_top_k(4, 10) == 1.0


def test_a_summary_has_each_k_and_both_baselines():
    accumulator = accumulate(np.array([0, 1, 1, 2]), np.eye(3)[[0, 1, 0, 0]], (1, 2))
    summary = summarize(accumulator, "test", np.array([10, 1, 1]))
    assert summary["top1"] == 0.5
    assert summary["majority_top1"] == 0.25
    assert summary["random_top2"] == pytest.approx(2 / 3)
    assert (summary["rows"], summary["classes_present"]) == (4, 3)


def test_many_classes_need_no_dense_matrix():
    accumulator = ConfusionAccumulator(203_094)
    rng = np.random.default_rng(0)
    for _ in range(3):
        accumulator.update(rng.integers(0, 203_094, 1000), rng.integers(0, 203_094, (1000, 10)))
    assert len(accumulator.confusion()) <= 3000
