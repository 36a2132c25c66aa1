"""Cleaned datasets: the loader, subsets and repacking see each kept image once, with its new label."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from landmark.config import AugmentConfig, LoaderConfig, SamplingConfig, SubsetConfig, UserError
from landmark.data.cleaned_dataset import KEPT_SCHEMA, CleanedDataset
from landmark.data.dataset import SCHEMA_VERSION, SELECTION_KIND, PackedDataset
from landmark.data.loading.loader import Loader
from landmark.data.packing.repack import DatasetSource
from landmark.data.subset_view import open_dataset
from landmark.storage import locate
from landmark.storage.tables import write_table
from tests.support.packed import write_packed

KEPT = {
    "train": {sample: (sample + 1) % 4 if sample % 5 == 0 else sample % 4 for sample in range(40) if sample % 3},
    "val": {sample: sample % 4 for sample in range(1, 10)},
    "test": {sample: sample % 4 for sample in range(10)},
}
"""New label by sample: every third training image is dropped and every fifth is relabeled."""


def write_cleaned(folder: Path, base: PackedDataset, kept: dict[str, dict[int, int]]) -> str:
    """Write a cleaned dataset directly and return its path."""
    rows = [(split, sample, label) for split, labels in kept.items() for sample, label in labels.items()]
    columns = [list(column) for column in zip(*rows, strict=True)]
    write_table(locate(folder) / "kept.parquet", pa.table(columns, schema=KEPT_SCHEMA))
    values = {
        "kind": SELECTION_KIND,
        "schema_version": SCHEMA_VERSION,
        "dataset": base.location.uri,
        "fingerprint": base.manifest.shards_digest(),
        "rows": len(rows),
    }
    (folder / "manifest.json").write_text(json.dumps(values))
    return str(folder)


@pytest.fixture
def cleaned(tmp_path: Path) -> str:
    """A cleaned dataset that is based on a packed dataset of four classes."""
    base = write_packed(tmp_path / "base", {"train": [24, 16], "val": [10], "test": [10]})
    return write_cleaned(tmp_path / "cleaned", base, KEPT)


def loaded_pairs(dataset: PackedDataset, split: str, **options: object) -> list[tuple[int, int]]:
    """Return the (sample, label) pairs that a loader yields in one epoch, sorted."""
    config = LoaderConfig(image_size=16, batch_size=7)
    pairs: list[tuple[int, int]] = []
    with Loader(dataset, split, config, **options) as loader:  # type: ignore[arg-type]
        for batch in loader.epoch(1):
            pairs += zip(batch.samples.tolist(), batch.labels.tolist(), strict=True)
    return sorted(pairs)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_each_kept_image_is_loaded_once_with_its_new_label(cleaned: str, split: str) -> None:
    dataset = open_dataset(cleaned)
    assert isinstance(dataset, CleanedDataset)
    augment = AugmentConfig() if split == "train" else None
    assert loaded_pairs(dataset, split, augment=augment) == sorted(KEPT[split].items())
    labels = list(KEPT[split].values())
    assert dataset.label_counts(split).tolist() == np.bincount(labels, minlength=4).tolist()
    catalog = dataset.catalog(split)
    assert dict(zip(catalog["sample"].to_pylist(), catalog["label"].to_pylist(), strict=True)) == KEPT[split]
    assert catalog["landmark_id"].to_pylist() == [f"c{label}" for label in catalog["label"].to_pylist()]


def test_all_ranks_together_load_the_kept_images(cleaned: str) -> None:
    dataset = open_dataset(cleaned)
    ranks = [loaded_pairs(dataset, "train", augment=AugmentConfig(), rank=rank, world_size=2) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == sorted(KEPT["train"].items())


def test_balanced_sampling_uses_the_new_labels(cleaned: str) -> None:
    sampling = SamplingConfig(name="balanced")
    pairs = loaded_pairs(open_dataset(cleaned), "train", augment=AugmentConfig(), sampling=sampling)
    assert all(KEPT["train"][sample] == label for sample, label in pairs) and len(pairs) == len(KEPT["train"])


def test_empty_classes_are_removed_and_subsets_use_the_new_labels(cleaned: str, tmp_path: Path) -> None:
    base = PackedDataset.open(str(tmp_path / "base"))
    without = {split: {sample: label for sample, label in rows.items() if label != 1} for split, rows in KEPT.items()}
    dataset = open_dataset(write_cleaned(tmp_path / "three", base, without))
    assert dataset.class_names == ["c0", "c2", "c3"] and dataset.num_classes == 3
    dense = {0: 0, 2: 1, 3: 2}
    expected = sorted((sample, dense[label]) for sample, label in without["train"].items())
    assert loaded_pairs(dataset, "train", augment=AugmentConfig()) == expected
    subset = open_dataset(cleaned, SubsetConfig(where="landmark_id == 'c2'"))
    assert subset.class_names == ["c2"]
    assert loaded_pairs(subset, "train") == sorted((sample, 0) for sample, label in KEPT["train"].items() if label == 2)


def test_repacking_a_cleaned_dataset_uses_the_new_labels(cleaned: str) -> None:
    source = DatasetSource(cleaned, SubsetConfig(), 0)
    items = source.items()
    train = items.filter(pa.compute.equal(items["split"], "train"))
    expected = {f"train{sample:06d}": f"c{label}" for sample, label in KEPT["train"].items()}
    assert dict(zip(train["image_id"].to_pylist(), train["landmark_id"].to_pylist(), strict=True)) == expected
    assert source.read(train.slice(0, 1).to_pylist()[0])[:2] == b"\xff\xd8"
    assert source.listing().names["name"].to_pylist() == ["c0", "c1", "c2", "c3"]


def _delete_base(folder: Path) -> None:
    (folder / "base" / "manifest.json").unlink()


def _replace_base(folder: Path) -> None:
    write_packed(folder / "base", {"train": [24, 15], "val": [10], "test": [10]})


def _delete_rows(folder: Path) -> None:
    (folder / "cleaned" / "kept.parquet").unlink()


def _empty_rows(folder: Path) -> None:
    write_table(locate(folder) / "cleaned" / "kept.parquet", KEPT_SCHEMA.empty_table())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _delete_base,
            "cleaned/manifest.json: the dataset that was cleaned cannot be opened: .*base: no manifest.json",
        ),
        (_replace_base, "was packed again after cleaning; clean it again"),
        (_delete_rows, "kept.parquet: missing; clean the dataset again"),
        (_empty_rows, "kept.parquet: does not match manifest.json; clean the dataset again"),
    ],
)
def test_damage_is_a_one_line_error(cleaned: str, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        open_dataset(cleaned)
    assert "\n" not in str(error.value)


def test_a_split_without_kept_images_is_an_error(cleaned: str, tmp_path: Path) -> None:
    base = PackedDataset.open(str(tmp_path / "base"))
    dataset = open_dataset(write_cleaned(tmp_path / "none", base, {**KEPT, "val": {}}))
    with pytest.raises(UserError, match="cleaning kept no image in the val split"):
        dataset.split("val")


def test_a_cleaned_dataset_and_its_subsets_keep_their_uri(cleaned: str) -> None:
    dataset = open_dataset(cleaned)
    assert dataset.uri == str(Path(cleaned).resolve()) or dataset.uri.endswith(cleaned)
    assert open_dataset(cleaned, SubsetConfig(where="landmark_id == 'c2'")).uri == dataset.uri
    assert open_dataset(dataset.uri).label_counts("train").tolist() == dataset.label_counts("train").tolist()
