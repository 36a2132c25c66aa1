"""Duplicates: groups are connected components, and the preferred image of each group is kept."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from landmark.cleaning.duplicates import Pairs, equal_pairs, groups_of, retention_priority, select_duplicates


def pairs_of(pairs: list[tuple[int, int]]) -> Pairs:
    """Return pairs with similarity 1."""
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Pairs(first=array[:, 0], second=array[:, 1], score=np.ones(len(array)))


def components(rows: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Return the lowest row of the component of each row, by plain search."""
    lowest = list(range(rows))
    for _ in range(rows):
        for one, other in pairs:
            lowest[one] = lowest[other] = min(lowest[one], lowest[other])
    return lowest


@hypothesis.given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    )
)
def test_groups_are_components_and_one_image_of_each_is_kept(case: tuple[int, list[tuple[int, int]]]) -> None:
    rows, pairs = case
    expected = components(rows, pairs)
    groups = groups_of(rows, pairs_of(pairs))
    assert groups.tolist() == expected
    rank = np.random.default_rng(rows).permutation(rows)
    dropped = select_duplicates(pairs_of(pairs), rank)
    kept = np.setdiff1d(np.arange(rows), dropped.rows)
    assert sorted(groups[kept].tolist()) == sorted(set(expected))
    assert (groups[dropped.rows] == groups[dropped.kept]).all() and (rank[dropped.kept] < rank[dropped.rows]).all()


def test_a_chain_of_a_hundred_thousand_is_one_group() -> None:
    rows = np.random.default_rng(0).permutation(100_000)
    chain = Pairs(first=rows[:-1], second=rows[1:], score=np.ones(len(rows) - 1))
    assert not groups_of(len(rows), chain).any()


def test_equal_file_or_pixel_hashes_join_images_and_empty_ones_do_not() -> None:
    files = np.array([b"a", b"b", b"a", b"c", b"d", b"e"], dtype=object)
    pixels = np.array([b"p", b"q", b"r", b"q", b"", b""], dtype=object)
    assert groups_of(6, equal_pairs(files, pixels)).tolist() == [0, 1, 0, 1, 4, 5]


def test_the_kept_image_depends_on_split_then_common_label_then_size() -> None:
    splits = np.array([0, 2, 1, 0, 0, 0, 0, 0])
    labels = np.array([5, 5, 5, 1, 2, 2, 3, 3])
    areas = np.array([9, 1, 5, 9, 5, 7, 4, 4])
    groups = np.array([0, 0, 0, 3, 3, 3, 6, 6])
    rank = retention_priority(splits, labels, areas, groups)
    assert [min(np.flatnonzero(groups == group), key=lambda row: rank[row]) for group in (0, 3, 6)] == [1, 5, 6]
    assert sorted(rank.tolist()) == list(range(8))
