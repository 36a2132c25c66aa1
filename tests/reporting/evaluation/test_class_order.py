"""Class order of a clustered confusion matrix: confused classes are adjacent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark.reporting.evaluation.class_order import clustered_order


def test_shuffled_blocks_are_recovered():
    rng = np.random.default_rng(0)
    block = rng.permutation(np.repeat(np.arange(10), 6))
    true, predicted = rng.integers(0, 60, 20_000), rng.integers(0, 60, 20_000)
    kept = (block[true] == block[predicted]) | (rng.random(20_000) < 0.05)
    cells, count = np.unique(true[kept] * 60 + predicted[kept], return_counts=True)
    order = clustered_order(cells // 60, cells % 60, count, 60)
    # Nine block changes along the order: each block is contiguous.
    assert (np.diff(block[order]) != 0).sum() == 9


def test_similar_ends_are_adjacent():
    # 0-1 and 2-3 are pairs, and 1 is sometimes predicted as 2.
    order = clustered_order(np.array([0, 2, 1]), np.array([1, 3, 2]), np.array([50, 50, 5]), 4).tolist()
    assert order in ([0, 1, 2, 3], [3, 2, 1, 0])


@given(st.integers(0, 12), st.integers(0, 60), st.integers(0, 1000))
def test_order_is_a_permutation_of_the_classes(classes, cells, seed):
    rng = np.random.default_rng(seed)
    cells = cells if classes else 0
    true, predicted = rng.integers(0, max(classes, 1), (2, cells))
    order = clustered_order(true, predicted, rng.integers(1, 9, cells), classes)
    assert sorted(order.tolist()) == list(range(classes))


@pytest.mark.timeout(20)
def test_hundreds_of_classes_are_fast():
    rng = np.random.default_rng(1)
    true, predicted = rng.integers(0, 400, (2, 20_000))
    assert len(clustered_order(true, predicted, np.ones(20_000), 400)) == 400
