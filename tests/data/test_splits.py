"""Splits: groups stay in one split, every class is in train, and only the seed matters."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark.config import SplitConfig
from landmark.data.splits import TEST, TRAIN, VAL, split_images

labels_and_groups = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 25)), min_size=1, max_size=120)


def dense(values: list[int]) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


@given(labels_and_groups, st.floats(0, 0.4), st.floats(0, 0.4), st.integers(0, 2**31))
def test_groups_of_a_class_stay_in_one_split_and_train_has_every_class(rows, val, test, seed):
    labels = dense([label for label, _ in rows])
    groups = pa.array([f"{label}/{group}" for label, group in rows])
    splits = split_images(labels, groups, SplitConfig(val=val, test=test), seed)
    assert set(splits.tolist()) <= {TRAIN, VAL, TEST}
    for group in set(groups.to_pylist()):
        assert len(set(splits[np.array(groups.to_pylist()) == group].tolist())) == 1
    assert set(labels[splits == TRAIN].tolist()) == set(labels.tolist())
    assert np.array_equal(splits, split_images(labels, groups, SplitConfig(val=val, test=test), seed))


@given(labels_and_groups, st.integers(0, 2**31))
def test_groups_that_span_classes_stay_in_one_split(rows, seed):
    labels = dense([label for label, _ in rows])
    groups = [str(group) for _, group in rows]
    splits = split_images(labels, pa.array(groups), SplitConfig(), seed)
    for group in set(groups):
        assert len(set(splits[np.array(groups) == group].tolist())) == 1
    assert set(labels[splits == TRAIN].tolist()) == set(labels.tolist())


@given(labels_and_groups, st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows, seed, shuffler):
    labels = dense([label for label, _ in rows])
    groups = np.array([f"{label}/{group}" for label, group in rows])
    splits = split_images(labels, pa.array(groups), SplitConfig(), seed)
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    reordered = split_images(labels[order], pa.array(groups[order]), SplitConfig(), seed)
    assert np.array_equal(reordered, splits[order])


def test_fractions_hold_per_large_class_and_on_average_in_small_ones():
    config = SplitConfig(val=0.2, test=0.1)
    large = np.repeat(np.arange(4), 500)
    splits = split_images(large, pa.array([str(i) for i in range(len(large))]), config, 0)
    for label in range(4):
        counts = np.bincount(splits[large == label], minlength=3)
        assert counts == pytest.approx([350, 100, 50], abs=1)
    small = np.repeat(np.arange(5000), 3)
    splits = split_images(small, pa.array([str(i) for i in range(len(small))]), config, 0)
    assert np.bincount(splits, minlength=3) / len(small) == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_a_class_with_one_image_stays_in_train():
    labels = np.arange(50)
    splits = split_images(labels, pa.array([str(i) for i in labels]), SplitConfig(val=0.4, test=0.4), 0)
    assert (splits == TRAIN).all()


def test_another_seed_gives_another_split():
    labels = np.zeros(100, dtype=int)
    groups = pa.array([str(i) for i in range(100)])
    one, other = (split_images(labels, groups, SplitConfig(), seed) for seed in (0, 1))
    assert not np.array_equal(one, other)
