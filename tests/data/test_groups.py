"""Image groups: stored in the catalog, kept by subsets and repacking, and missing in older datasets."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from landmark.config import SubsetConfig
from landmark.data.packing.repack import DatasetSource
from landmark.data.subset_view import open_dataset
from landmark.inference.evaluation import groups_of
from landmark.storage.tables import read_table, write_table
from tests.support.packed import write_packed


def test_groups_are_read_by_sample_and_missing_in_older_datasets(tmp_path: Path):
    dataset = write_packed(tmp_path / "data", {"train": [8], "val": [], "test": [6]})
    assert dataset.sample_groups("test") is None and groups_of(dataset, "test", np.arange(6)) is None
    catalog = read_table(dataset.location / "catalog.parquet")
    ids = catalog["image_id"].to_pylist()
    names = [f"group:{int(image[-1]) // 3}" if image.startswith("test") else image for image in ids]
    # The rows of a catalog have no order.
    shuffled = catalog.append_column("group", pa.array(names)).take(pa.array(np.random.default_rng(0).permutation(14)))
    write_table(dataset.location / "catalog.parquet", shuffled)
    assert dataset.sample_groups("test").tolist() == [0, 0, 0, 1, 1, 1]
    # Two distractors, numbered after the split's images, each form their own group.
    assert groups_of(dataset, "test", np.array([5, 1, 6, 2, 7])).tolist() == [1, 0, 4, 0, 6]
    subset = SubsetConfig(classes=2)
    view = open_dataset(str(tmp_path / "data"), subset, 0)
    rows = np.flatnonzero(view.selected("test"))
    found = groups_of(view, "test", rows)
    assert 0 < len(rows) < 6 and found is not None and found.tolist() == (rows // 3).tolist()
    items = DatasetSource(str(tmp_path / "data"), SubsetConfig(), 0).items()
    assert items.column_names.count("group") == 1
    assert dict(zip(items["image_id"].to_pylist(), items["group"].to_pylist(), strict=True)) == dict(
        zip(ids, names, strict=True)
    )
