"""Subset views: the loader yields each selected row once with dense labels and reads no other row group."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark.config import AugmentConfig, LoaderConfig, SubsetConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Loader
from landmark.data.subset_view import Selection, open_dataset
from tests.support.packed import write_packed

CLASSES = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    splits = {"train": [60, 33, 20], "val": [25], "test": [19]}
    return write_packed(tmp_path_factory.mktemp("packed"), splits, classes=CLASSES)


subsets = st.builds(
    SubsetConfig,
    classes=st.integers(1, CLASSES),
    choose=st.sampled_from(["frequent", "random"]),
    max_images=st.none() | st.integers(3, 30),
    where=st.none() | st.sampled_from(["landmark_id != 'c3'", "width >= 8"]),
)


@given(subsets, st.integers(0, 5), st.integers(1, 3), st.booleans())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_loader_yields_selected_samples_once_with_dense_labels(dataset, subset, seed, world, train):
    if subset.where and "!=" in subset.where and subset.classes == CLASSES:
        subset = dataclasses.replace(subset, classes=CLASSES - 1)
    selection = Selection(dataset, subset, seed)
    split = "train" if train else "val"
    catalog = dataset.catalog(split)
    selected_ids = set(selection.catalog(split)["image_id"].to_pylist())
    if len(selected_ids) < world:
        return
    names = selection.class_names
    config = LoaderConfig(image_size=16, batch_size=8, stream="thread", decode_threads=1)
    loaded = []
    for rank in range(world):
        options = {"rank": rank, "world_size": world, "augment": AugmentConfig() if train else None}
        with Loader(selection, split, config, **options) as loader:
            touched = {(task.shard, task.row_group) for task in loader.plan(1).read_tasks}
            for batch in loader.epoch(1):
                loaded += batch.samples.tolist()
                assert [names[label] for label in batch.labels] == [f"c{s % CLASSES}" for s in batch.samples]
        rows = [row for row in catalog.to_pylist() if row["image_id"] in selected_ids]
        assert touched <= {(row["shard"], row["row_group"]) for row in rows}
    assert sorted(loaded) == sorted(row["sample"] for row in rows)


def test_labels_are_dense_in_their_original_order_and_all_counts_agree(dataset):
    view = Selection(dataset, SubsetConfig(where="landmark_id in ['c5', 'c1', 'c2']"), 0)
    assert (view.num_classes, view.class_names) == (3, ["c1", "c2", "c5"])
    assert view.labels["label"].to_pylist() == [0, 1, 2]
    total = np.zeros(3, dtype=int)
    for split in ("train", "val", "test"):
        rows = dataset.catalog(split)["landmark_id"].to_pylist()
        expected = [rows.count(name) for name in view.class_names]
        assert view.label_counts(split).tolist() == expected
        assert view.split(split).rows == sum(expected) == len(view.catalog(split))
        total += expected
    assert view.labels["images"].to_pylist() == total.tolist()


def test_a_seed_is_reproducible_and_every_image_keeps_its_split(dataset):
    subset = SubsetConfig(classes=3, choose="random", images=40)
    ids = [
        {split: Selection(dataset, subset, seed).catalog(split)["image_id"].to_pylist() for split in ("train", "val")}
        for seed in (1, 1, 2)
    ]
    assert ids[0] == ids[1] != ids[2]
    assert all(image_id.startswith(split) for split, found in ids[0].items() for image_id in found)


def test_a_long_tail_reduces_only_the_training_split_and_keeps_labels(dataset):
    view = open_dataset(dataset.location.uri, SubsetConfig(tail=1.0), 0)
    assert (view.num_classes, view.class_names) == (CLASSES, dataset.class_names)
    assert dataset.label_counts("train").tolist() == [17, 16, 16, 16, 16, 16, 16]
    assert view.label_counts("train").tolist() == [17, 8, 6, 4, 3, 3, 2]  # 17 / n
    assert view.split("train").rows == 43 == len(view.catalog("train"))
    for split in ("val", "test"):
        assert view.catalog(split).equals(dataset.catalog(split))
    assert view.labels["images"].to_pylist() == sum(view.label_counts(s) for s in ("train", "val", "test")).tolist()


def test_a_long_tail_is_applied_after_the_other_conditions(dataset):
    subset = SubsetConfig(where="landmark_id != 'c0'", classes=4, tail=1.0)
    view = open_dataset(dataset.location.uri, subset, 0)
    assert view.class_names == ["c1", "c2", "c3", "c4"]
    assert view.label_counts("train").tolist() == [16, 8, 5, 4]


def test_an_unrestricted_subset_is_the_dataset_itself(dataset):
    assert type(open_dataset(dataset.location.uri, SubsetConfig())) is PackedDataset


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (SubsetConfig(where="split != 'val'"), "the subset contains no image of the val split"),
        (SubsetConfig(classes=9), "subset.classes is 9, but 7 classes"),
        (SubsetConfig(where="licence == 'x'"), "no column 'licence'"),
        (SubsetConfig(clean=True), "subset.clean applies only to `landmark prepare` from the original GLDv2 files"),
        (SubsetConfig(licenses=("BY",)), "requires the licenses"),
    ],
)
def test_an_impossible_subset_is_a_one_line_error(dataset, subset, message):
    with pytest.raises(UserError, match=message) as error:
        open_dataset(dataset.location.uri, subset).split("val")
    assert "\n" not in str(error.value)


def test_the_landmarks_file_is_stored_as_an_absolute_path(dataset, tmp_path: Path, monkeypatch):
    (tmp_path / "ids.txt").write_text("c4\nc0\n")
    monkeypatch.chdir(tmp_path)
    selection = Selection(dataset, SubsetConfig(landmarks="ids.txt"), 0)
    assert selection.class_names == ["c0", "c4"]
    assert selection.subset.landmarks == str(tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "prepare the dataset with split.val above 0"),
        ({"source": "folders", "split": {"val": 0.0}}, "prepare the dataset with split.val above 0"),
        ({"source": "folders", "split": {"val": 0.15}}, "split.val is 0.15, but 9 images of 7 classes are too few"),
        ({"source": "dataset", "split": {"val": 0.15}}, "it is also empty in the packed source or subset"),
    ],
)
def test_an_empty_split_is_an_error_with_its_reason(tmp_path: Path, source, message):
    dataset = write_packed(tmp_path, {"train": [9], "val": []}, classes=CLASSES)
    manifest = dataclasses.replace(dataset.manifest, source=source)
    with pytest.raises(UserError, match=f"the val split is empty; .*{message}"):
        PackedDataset(dataset.location, manifest).split("val")
