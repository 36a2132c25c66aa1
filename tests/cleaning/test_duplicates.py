"""Duplicates: groups are those of a graph's components, one of each stays, and it is the one that should."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from landmark.cleaning.duplicates import Pairs, drop_copies, equal_pairs, groups_of, keeping_rank


def pairs_of(pairs: list[tuple[int, int]]) -> Pairs:
    """Return pairs of likeness 1."""
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Pairs(first=array[:, 0], second=array[:, 1], score=np.ones(len(array)))


def components(rows: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Return the least row of each row's component, by plain search."""
    least = list(range(rows))
    for _ in range(rows):
        for one, other in pairs:
            least[one] = least[other] = min(least[one], least[other])
    return least


@hypothesis.given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    )
)
def test_groups_are_components_and_one_of_each_stays(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    rows, pairs = drawn
    expected = components(rows, pairs)
    groups = groups_of(rows, pairs_of(pairs))
    assert groups.tolist() == expected
    rank = np.random.default_rng(rows).permutation(rows)
    dropped = drop_copies(pairs_of(pairs), rank)
    stays = np.setdiff1d(np.arange(rows), dropped.rows)
    assert sorted(groups[stays].tolist()) == sorted(set(expected))
    assert (groups[dropped.rows] == groups[dropped.kept]).all() and (rank[dropped.kept] < rank[dropped.rows]).all()


def test_a_chain_of_a_hundred_thousand_is_one_group() -> None:
    rows = np.random.default_rng(0).permutation(100_000)
    chain = Pairs(first=rows[:-1], second=rows[1:], score=np.ones(len(rows) - 1))
    assert not groups_of(len(rows), chain).any()


def test_equal_hashes_are_joined_by_either_and_empty_ones_by_none() -> None:
    files = np.array([b"a", b"b", b"a", b"c", b"d", b"e"], dtype=object)
    pixels = np.array([b"p", b"q", b"r", b"q", b"", b""], dtype=object)
    assert groups_of(6, equal_pairs(files, pixels)).tolist() == [0, 1, 0, 1, 4, 5]


def test_test_stays_before_val_before_train_then_the_common_label_then_pixels() -> None:
    splits = np.array([0, 2, 1, 0, 0, 0, 0, 0])
    labels = np.array([5, 5, 5, 1, 2, 2, 3, 3])
    areas = np.array([9, 1, 5, 9, 5, 7, 4, 4])
    groups = np.array([0, 0, 0, 3, 3, 3, 6, 6])
    rank = keeping_rank(splits, labels, areas, groups)
    assert [min(np.flatnonzero(groups == group), key=lambda row: rank[row]) for group in (0, 3, 6)] == [1, 5, 6]
    assert sorted(rank.tolist()) == list(range(8))
