"""Subsets: the conditions hold, and a seed selects the same rows for any row order of the table."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark.cli import parse
from landmark.config import SubsetConfig, TrainConfig, UserError
from landmark.data.randomness import HashStream, hash_strings
from landmark.data.subset import limit_training_images, select_images


def images(counts: list[int], **columns: list) -> pa.Table:
    landmarks = [f"L{number}" for number, count in enumerate(counts) for _ in range(count)]
    ids = [f"{number:016x}" for number in range(len(landmarks))]
    return pa.table({"image_id": ids, "landmark_id": landmarks, **columns})


def kept_counts(table: pa.Table, mask: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(np.array(table["landmark_id"].to_pylist())[mask], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


counts_strategy = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(
    counts_strategy,
    st.integers(1, 5),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(1, 10),
    st.none() | st.integers(12, 60),
    st.sampled_from(["frequent", "random"]),
    st.randoms(use_true_random=False),
)
def test_conditions_hold_and_row_order_does_not_matter(
    counts, min_images, classes, max_images, total, choose, shuffler
):
    available = sum(count >= min_images for count in counts)
    if available < (classes or 1):
        return
    config = SubsetConfig(min_images=min_images, classes=classes, max_images=max_images, images=total, choose=choose)
    table = images(counts)
    mask = select_images(table, config, seed=5)
    kept = kept_counts(table, mask)
    assert len(kept) == (classes or available)
    assert all(counts[int(name[1:])] >= min_images for name in kept)
    assert all(count <= (max_images or 99) for count in kept.values())
    expected = sum(min(counts[int(name[1:])], max_images or 99) for name in kept)
    assert mask.sum() == min(expected, total or expected)
    if choose == "frequent" and classes is not None:
        dropped = [count for number, count in enumerate(counts) if f"L{number}" not in kept]
        assert min(counts[int(name[1:])] for name in kept) >= max(dropped, default=0)
    order = list(range(len(table)))
    shuffler.shuffle(order)
    reordered = select_images(table.take(order), config, seed=5)
    assert set(np.array(order)[reordered]) == set(np.flatnonzero(mask))


def test_the_seed_determines_the_selection():
    table = images([20] * 30)
    config = SubsetConfig(classes=5, choose="random", max_images=7)
    first, again, other = (select_images(table, config, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_total_keeps_the_proportions_of_the_classes():
    table = images([4000, 2000, 1000, 1000])
    kept = kept_counts(table, select_images(table, SubsetConfig(images=800), seed=0))
    assert kept["L0"] == pytest.approx(400, abs=50)
    assert kept["L1"] == pytest.approx(200, abs=40)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("width >= 300", [2, 3]),
        ("width >= 200 and not category == 'Church'", [1, 3]),
        ("category in ['Church', 'Bridge'] or width == 100", [0, 2]),
        ("200 <= width", [1, 2, 3]),
    ],
)
def test_where_compares_columns(where, expected):
    table = images([2, 2], width=[100, 200, 300, 400], category=["Tower", "Tower", "Church", "Tower"])
    assert np.flatnonzero(select_images(table, SubsetConfig(where=where), 0)).tolist() == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("widht > 3", "no column 'widht'; did you mean 'width'"),
        ("width >", "invalid syntax"),
        ("__import__('os').system('x') > 1", "expected a column or a constant|no column"),
        ("width", "expected comparisons"),
        ("width > 'a'", "cannot be compared"),
    ],
)
def test_invalid_where_expressions_are_reported(where, message):
    with pytest.raises(UserError, match=message):
        select_images(images([2], width=[1, 2]), SubsetConfig(where=where), 0)


def test_licenses_and_landmarks(tmp_path: Path):
    table = images([1, 1, 2], license=["CC BY 2.0", "CC BY-NC 2.0", None, "CC BY 4.0"])
    assert np.flatnonzero(select_images(table, SubsetConfig(licenses=("CC BY 2.0", "4.0")), 0)).tolist() == [0, 3]
    listed = tmp_path / "landmarks.txt"
    listed.write_text("L2\nL0\n")
    assert np.flatnonzero(select_images(table, SubsetConfig(landmarks=str(listed)), 0)).tolist() == [0, 2, 3]
    listed.write_text("L2\nL9\n")
    with pytest.raises(UserError, match="not in the dataset, such as 'L9'"):
        select_images(table, SubsetConfig(landmarks=str(listed)), 0)
    with pytest.raises(UserError, match=r"gldv2\.attribution"):
        select_images(images([2]), SubsetConfig(licenses=("CC",)), 0)


def test_too_few_classes_or_images_are_refused():
    with pytest.raises(UserError, match="2 classes have at least 3 images"):
        select_images(images([2, 3, 4]), SubsetConfig(classes=3, min_images=3), 0)
    with pytest.raises(UserError, match="the subset contains 3 classes"):
        select_images(images([2, 3, 4]), SubsetConfig(images=2), 0)


def split_images(train: list[int], others: list[int]) -> pa.Table:
    """A table of classes with the given numbers of training images, and of val and test images."""
    counts = [("train", train), ("val", others), ("test", others)]
    rows = [(split, f"L{number}") for split, each in counts for number, count in enumerate(each) for _ in range(count)]
    splits, landmarks = zip(*rows, strict=True)
    ids = [f"{number:016x}" for number in range(len(rows))]
    return pa.table({"image_id": ids, "landmark_id": landmarks, "split": splits})


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (0.0, [60, 100, 3, 40, 100]),
        (0.5, [58, 100, 3, 40, 71]),  # limits 100 n^-1/2: 100, 70.7, 57.7, 50, 44.7 for L1 L4 L0 L3 L2
        (1.0, [33, 100, 3, 25, 50]),
        (2.0, [11, 100, 3, 6, 25]),
    ],
)
def test_a_long_tail_limits_classes_by_a_power_of_their_rank(tail, expected):
    table = split_images([60, 100, 3, 40, 100], [5, 4, 3, 2, 1])
    mask = limit_training_images(table, SubsetConfig(tail=tail), seed=0)
    assert mask[303:].all() and len(mask) == 303 + 30
    assert kept_counts(table, mask & (np.arange(len(table)) < 303)) == {f"L{i}": n for i, n in enumerate(expected)}


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.floats(0, 2), st.randoms(use_true_random=False))
def test_a_long_tail_keeps_every_class_and_ignores_the_row_order(counts, tail, shuffler):
    table = split_images(counts, [1] * len(counts))
    mask = limit_training_images(table, SubsetConfig(tail=tail), seed=3)
    assert set(kept_counts(table, mask)) == {f"L{number}" for number in range(len(counts))}
    train = np.arange(len(table)) < sum(counts)
    assert set(kept_counts(table, mask & train)) == {f"L{number}" for number, count in enumerate(counts) if count}
    assert (mask & train).sum() <= sum(counts) and mask[~train].all()
    order = list(range(len(table)))
    shuffler.shuffle(order)
    assert set(np.array(order)[limit_training_images(table.take(order), SubsetConfig(tail=tail), seed=3)]) == set(
        np.flatnonzero(mask)
    )


def test_a_longer_tail_is_a_subset_of_a_shorter_one_with_the_same_seed():
    table = split_images([50, 40, 30, 20], [2] * 4)
    short, long, other = (
        limit_training_images(table, SubsetConfig(tail=tail), seed) for tail, seed in ((0.5, 0), (1.5, 0), (1.5, 1))
    )
    assert not (long & ~short).any() and long.sum() < short.sum()
    assert long.sum() == other.sum() and (long != other).any()


def test_shots_limit_the_training_images_per_class_and_fewer_shots_are_a_subset_of_more():
    table = split_images([60, 100, 3, 40, 100], [5, 4, 3, 2, 1])
    train = np.arange(len(table)) < 303
    masks = {shots: limit_training_images(table, SubsetConfig(shots=shots), seed=0) for shots in (1, 5, 50)}
    for shots, mask in masks.items():
        expected = {f"L{i}": min(n, shots) for i, n in enumerate([60, 100, 3, 40, 100])}
        assert mask[~train].all() and kept_counts(table, mask & train) == expected
    assert not (masks[1] & ~masks[5]).any() and not (masks[5] & ~masks[50]).any()
    both = limit_training_images(table, SubsetConfig(shots=30, tail=2.0), seed=0)
    assert kept_counts(table, both & train) == {"L0": 11, "L1": 30, "L2": 3, "L3": 6, "L4": 25}
    other = limit_training_images(table, SubsetConfig(shots=5), seed=1)
    assert other.sum() == masks[5].sum() and (other != masks[5]).any()


@pytest.mark.parametrize("tail", ["-0.1", "2.5", "nan"])
def test_a_tail_out_of_range_is_a_one_line_error(tail):
    with pytest.raises(UserError, match=f"subset.tail is {tail}; expected 0 to 2") as error:
        parse(TrainConfig, ["--dataset", "d", "--subset.tail", tail], "landmark train")
    assert "\n" not in str(error.value)
    assert parse(TrainConfig, ["--dataset", "d", "--tail", "1"], "landmark train").subset == SubsetConfig(tail=1.0)


@given(st.lists(st.text(max_size=20), max_size=20), st.integers(0, 2**40))
def test_a_hash_depends_only_on_the_text(texts, seed):
    together = hash_strings(pa.array(texts, pa.string()), seed, HashStream.SPLIT)
    assert together.tolist() == [int(hash_strings(pa.array([text]), seed, HashStream.SPLIT)[0]) for text in texts]
    assert len(set(together.tolist())) == len(set(texts))
