"""Random streams: no two purposes share random numbers, and subsets keep each split's fraction within chance."""

import ast
import collections
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import landmark
from landmark.config import PrepareConfig, SplitConfig, SubsetConfig, SyntheticConfig
from landmark.data.dataset import SPLITS
from landmark.data.packing.catalog import request_images
from landmark.data.packing.sources import SyntheticSource, class_labels
from landmark.data.randomness import HashStream, Stream, generator, hash_strings
from landmark.data.splits import split_images
from landmark.data.subset import limit_training_images, select_images
from landmark.data.synthetic import plan_images

DEMO = SyntheticConfig()
"""3,000 images of 24 classes with a long tail."""


def packed_table(seed: int) -> pa.Table:
    """The images of the demo with their splits, as in the catalog of a packed dataset."""
    items = plan_images(DEMO, seed)
    labels, _ = class_labels(items)
    splits = split_images(labels, items["group"], SplitConfig(), seed)
    return items.append_column("split", pa.array(np.array(SPLITS)[splits]))


def assert_within_chance(splits: np.ndarray, fractions: np.ndarray) -> None:
    """Check that the number of images in each split is within four standard deviations of the expectation."""
    counts = np.array([(splits == split).sum() for split in SPLITS])
    deviation = np.sqrt(fractions * (1 - fractions) * counts.sum())
    assert (np.abs(counts - fractions * counts.sum()) <= 4 * deviation).all(), dict(zip(SPLITS, counts, strict=True))


RULE_1_IDS = """
653c0bfecead92ab e31426da764b25bc 2c08bb191947aeae 47a08fa2954fb019 b9f3f907e49c7567
4efb51222c43e8af 8c74aead487142ee 3c1eba8b4dccc148 cd2ad2246f4af57f bedeff6750f9e9b8
03ec4fdf67924d52 a9830036d2ca1c21 28b2a3935bafd712 f77f2b40dd05176e aae6398c19a9e61c
d167aef8352c49ad c1b063e60cffc62f ec6e483d6ab45057 10369f5e35d96921 6ccce135d086cf66
"""
"""Demo images that `--classes 4 --choose random --max-images 5` with seed 3 selected before rules were recorded."""

SUBSETS = [
    SubsetConfig(images=1500),
    SubsetConfig(images=300),
    SubsetConfig(max_images=20),
    SubsetConfig(max_images=60),
    SubsetConfig(classes=6),
    SubsetConfig(classes=6, choose="random"),
    SubsetConfig(classes=10, images=400),
    SubsetConfig(classes=10, choose="random", max_images=30, images=200),
    SubsetConfig(min_images=100, images=500),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_a_subset_of_a_packed_dataset_keeps_each_splits_fraction(subset, seed):
    table = packed_table(seed)
    all_splits = np.array(table["split"].to_pylist())
    kept = select_images(table, subset, seed)
    assert_within_chance(all_splits[kept], np.array([(all_splits == split).mean() for split in SPLITS]))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_a_subset_of_a_source_is_split_as_configured(subset, seed):
    config = PrepareConfig(output="o", source="synthetic", subset=subset, seed=seed)
    requested = request_images(SyntheticSource(DEMO, seed), config)
    assert_within_chance(np.array(SPLITS)[requested.splits()], np.array([0.7, 0.15, 0.15]))


def test_a_long_tail_is_selected_independently_of_other_selections():
    """The tail keeps each image of an earlier selection with equal probability, for any order of that selection."""
    table = packed_table(0)
    kept = table.filter(pa.array(select_images(table, SubsetConfig(max_images=60), 0)))
    train = np.array(kept["split"].to_pylist()) == "train"
    selected = limit_training_images(kept, SubsetConfig(tail=1.0), 0)[train]
    order = hash_strings(kept["image_id"], 0, HashStream.SUBSET_MAX_IMAGES)[train]
    split = hash_strings(kept["image_id"], 0, HashStream.SPLIT)[train]
    assert 0.1 < selected.mean() < 0.5
    for keys in (order, split):
        ranks = np.argsort(np.argsort(keys)) / len(keys)
        assert abs(ranks[selected].mean() - ranks.mean()) < 4 / np.sqrt(12 * selected.sum())


def test_a_total_does_not_prefer_classes_that_were_limited():
    """From 5 classes of 1,000 and 5 of 100 images, all limited to 100, a total of 200 keeps about 100 of each kind."""
    landmarks = [f"L{number}" for number in range(10) for _ in range(1000 if number < 5 else 100)]
    table = pa.table({"image_id": [f"{number:016x}" for number in range(len(landmarks))], "landmark_id": landmarks})
    kept = select_images(table, SubsetConfig(max_images=100, images=200), 0)
    large = sum(name < "L5" for name in np.array(landmarks)[kept])
    assert kept.sum() == 200 and abs(large - 100) < 4 * np.sqrt(50)


def test_streams_of_one_seed_are_independent():
    values = pa.array([f"{number:016x}" for number in range(20_000)])
    hashes = [hash_strings(values, seed, stream) for seed in (0, 1) for stream in HashStream]
    uniform = [generator(0, stream).random(20_000) for stream in Stream]
    for columns in (hashes, uniform):
        ranks = np.array([np.argsort(np.argsort(column)) for column in columns], dtype=float)
        assert abs(np.corrcoef(ranks) - np.eye(len(ranks))).max() < 0.03


def calls_of(name: str) -> list[tuple[str, ast.Call]]:
    """Return every call of a function in the package, with the path of its module."""
    root = Path(landmark.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                found.append((str(path.relative_to(root)), node))
    return found


@pytest.mark.parametrize(("name", "argument", "streams"), [("generator", 1, Stream), ("hash_strings", 2, HashStream)])
def test_each_stream_is_used_for_one_purpose(name, argument, streams):
    used = collections.Counter()
    for module, call in calls_of(name):
        named = [
            node.attr
            for node in ast.walk(call.args[argument])
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == streams.__name__
        ]
        assert len(named) == 1, f"{module}:{call.lineno} names no stream"
        used[named[0]] += 1
    assert used == {stream.name: 1 for stream in streams}


def test_rule_1_selects_as_before():
    """Runs of the version that recorded no rule resume with these selections."""
    table = packed_table(0)
    all_splits = np.array(table["split"].to_pylist())
    counts = {}
    for images in (1500, 300):
        kept = select_images(table, SubsetConfig(images=images, rule=1), 0)
        counts[images] = [int((all_splits[kept] == split).sum()) for split in SPLITS]
    assert counts == {1500: [599, 449, 452], 300: [0, 0, 300]}
    kept = select_images(table, SubsetConfig(classes=4, choose="random", max_images=5, rule=1), 3)
    assert table["image_id"].filter(pa.array(kept)).to_pylist() == RULE_1_IDS.split()
