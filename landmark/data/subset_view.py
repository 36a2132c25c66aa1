"""Subsets of a packed dataset that are read in place, without packing again."""

import dataclasses
import json

import pyarrow as pa

from landmark.config import SubsetConfig, UserError
from landmark.data.cleaned_dataset import CleanedDataset
from landmark.data.dataset import SELECTION_KIND, PackedDataset
from landmark.data.dataset_view import COLUMNS, FilteredDataset
from landmark.data.subset import limit_training_images, select_images
from landmark.storage import Damaged, NotFound, locate


class Selection(FilteredDataset):
    """A subset of a packed or cleaned dataset. Classes are chosen over all splits, a long tail and shots apply only
    to the train split."""

    def __init__(self, dataset: PackedDataset, subset: SubsetConfig, seed: int) -> None:
        if subset.clean:
            raise UserError(
                "subset.clean applies only to `landmark prepare` from the original GLDv2 files; remove it for a packed dataset"
            )
        if subset.landmarks is not None:
            subset = dataclasses.replace(subset, landmarks=locate(subset.landmarks).uri)
        every_column = subset.where is not None or bool(subset.licenses)
        table = dataset.full_catalog(None if every_column else COLUMNS)
        table = table.filter(pa.array(select_images(table, subset, seed))).select(COLUMNS)
        if subset.limits_training():
            table = table.filter(pa.array(limit_training_images(table, subset, seed)))
        super().__init__(dataset, table)
        self.subset = subset
        self.subset_seed = seed


def open_dataset(uri: str, subset: SubsetConfig | None = None, seed: int = 0) -> PackedDataset:
    """Open the packed or cleaned dataset at a path or URI, or a subset of it. Raises UserError if it is missing."""
    location = locate(uri)
    try:
        values = json.loads((location / "manifest.json").read_text())
    except (NotFound, Damaged, json.JSONDecodeError):
        values = {}
    is_cleaned = isinstance(values, dict) and values.get("kind") == SELECTION_KIND
    dataset = CleanedDataset.of(location, values) if is_cleaned else PackedDataset.open(uri)
    return dataset if subset is None or subset.keeps_all_images() else Selection(dataset, subset, seed)
