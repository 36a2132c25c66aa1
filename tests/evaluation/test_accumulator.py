"""Metrics agree with scikit-learn, parts merge to the whole, baselines know nothing of the image."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from landmark.evaluation import Tally, majority_top_k, random_top_k, summarise

scores = st.integers(2, 9).flatmap(
    lambda classes: st.integers(1, 40).flatmap(
        lambda rows: st.tuples(
            hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)),
            hnp.arrays(np.float64, (rows, classes), elements=st.floats(0, 1), unique=True),
        )
    )
)


def tally_of(labels: np.ndarray, logits: np.ndarray, topk: tuple[int, ...] = (1, 3, 10)) -> Tally:
    tally = Tally(logits.shape[1], topk)
    tally.update(labels, np.argsort(-logits, axis=1)[:, : tally.guesses])
    return tally


@given(scores)
def test_metrics_agree_with_scikit_learn(case):
    labels, logits = case
    classes = logits.shape[1]
    tally, guesses = tally_of(labels, logits), logits.argmax(axis=1)
    assert tally.top_k(1) == pytest.approx(sklearn.metrics.accuracy_score(labels, guesses))
    if classes > 3:
        expected = sklearn.metrics.top_k_accuracy_score(labels, logits, k=3, labels=range(classes))
        assert tally.top_k(3) == pytest.approx(expected)
    assert tally.top_k(10) == 1.0
    present = np.unique(labels)
    expected = sklearn.metrics.recall_score(labels, guesses, labels=present, average="macro", zero_division=0)
    assert tally.macro_recall() == pytest.approx(expected)
    matrix = np.zeros((classes, classes), int)
    cells = tally.confusion().to_pydict()
    matrix[cells["true"], cells["predicted"]] = cells["count"]
    assert np.array_equal(matrix, sklearn.metrics.confusion_matrix(labels, guesses, labels=range(classes)))


@given(scores, st.integers(0, 40))
def test_parts_merge_to_the_whole(case, cut):
    labels, logits = case
    whole, first, second = (tally_of(labels[s], logits[s]) for s in (slice(None), slice(None, cut), slice(cut, None)))
    first.merge(second)
    assert first.hits == whole.hits and first.rows == whole.rows
    assert first.confusion().equals(whole.confusion())
    assert np.array_equal(first.right, whole.right)


def test_per_class_has_no_recall_without_rows():
    tally = tally_of(np.array([0, 0, 2]), np.eye(3)[[0, 2, 2]])
    table = tally.per_class(["a", "b", "c"], np.array([5, 6, 7])).to_pylist()
    assert [row["recall"] for row in table] == [0.5, None, 1.0]
    assert [row["precision"] for row in table] == [1.0, None, 0.5]
    assert tally.macro_recall() == 0.75


@given(hnp.arrays(np.int64, 8, elements=st.integers(0, 30)), hnp.arrays(np.int64, 8, elements=st.integers(0, 30)))
def test_the_majority_baseline_answers_the_training_splits_frequent_classes(train, counts):
    labels = np.repeat(np.arange(8), counts)
    answered = sorted(range(8), key=lambda label: (-train[label], label))[:3]
    expected = np.isin(labels, answered).mean() if len(labels) else 0.0
    assert majority_top_k(train, counts, 3) == pytest.approx(expected)


def test_the_random_baseline_is_the_decks():
    assert random_top_k(100, 1) == 0.01
    assert random_top_k(4, 10) == 1.0


def test_a_summary_has_each_k_beside_both_baselines():
    tally = tally_of(np.array([0, 1, 1, 2]), np.eye(3)[[0, 1, 0, 0]], (1, 2))
    summary = summarise(tally, "test", np.array([10, 1, 1]))
    assert summary["top1"] == 0.5
    assert summary["majority_top1"] == 0.25
    assert summary["random_top2"] == pytest.approx(2 / 3)
    assert (summary["rows"], summary["classes_present"]) == (4, 3)


def test_many_classes_need_no_dense_matrix():
    tally = Tally(203_094)
    rng = np.random.default_rng(0)
    for _ in range(3):
        tally.update(rng.integers(0, 203_094, 1000), rng.integers(0, 203_094, (1000, 10)))
    assert len(tally.confusion()) <= 3000
