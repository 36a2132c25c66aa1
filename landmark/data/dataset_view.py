"""A filtered view of a packed dataset, the base of subsets and cleaned datasets."""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import UserError
from landmark.data.dataset import PackedDataset, SplitEntry
from landmark.storage.tables import read_table

COLUMNS = ["sample", "image_id", "landmark_id", "label", "split"]


class FilteredDataset(PackedDataset):
    """A filtered view of a packed dataset, with the same interface.

    Each image keeps its split and its sample number. Labels are renumbered 0 to k - 1, in the order of the dataset's
    labels.

    kept: the images in the view, with the columns COLUMNS. The labels are those of the shards.
    """

    none_left = (
        "{location}: the subset contains no image of the {split} split; use a less strict subset, or prepare a "
        "dataset from it with `landmark prepare`"
    )
    """Error message for a split without images."""

    def __init__(self, dataset: PackedDataset, kept: pa.Table) -> None:
        super().__init__(dataset.location, dataset.manifest)
        self.uri = dataset.uri
        self.content_id = dataset.content_id
        self.relabelled = dataset.relabelled
        self._kept = kept
        old = np.unique(kept["label"].to_numpy())
        self.old_labels = old.astype(np.int64)
        self.label_map = np.full(dataset.manifest.classes, -1, dtype=np.int64)
        self.label_map[old] = np.arange(len(old))

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.old_labels)

    @functools.cached_property
    def labels(self) -> pa.Table:
        """The labels in order, with the number of images in the view. Schema: LABELS_SCHEMA."""
        table = read_table(self.location / "labels.parquet").take(pa.array(self.old_labels))
        counts = np.bincount(self._new_labels(self._kept), minlength=self.num_classes)
        for name, values in (("label", np.arange(self.num_classes)), ("images", counts)):
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
        return table

    def split(self, name: str) -> SplitEntry:
        """Return a split's shards, with the number of rows in the view. Raises UserError if there are none."""
        entry = super().split(name)
        rows = len(self._rows(name))
        if not rows:
            raise UserError(self.none_left.format(location=self.location, split=name))
        return dataclasses.replace(entry, rows=rows)

    def selected(self, split: str) -> np.ndarray | None:
        """Return a mask of the samples of a split that are in the view, bool (split rows,)."""
        mask = np.zeros(self.manifest.splits[split].rows, dtype=bool)
        mask[self._rows(split)["sample"].to_numpy()] = True
        return mask

    def catalog(self, split: str) -> pa.Table:
        """Return the catalog's rows of a split that are in the view, sorted by `sample`, with renumbered labels.
        Schema: CATALOG_SCHEMA."""
        table = super().catalog(split)
        table = table.filter(pa.array(self.selected(split)))
        kept = self._rows(split).sort_by("sample")
        for name, values in (
            ("label", pa.array(self._new_labels(kept), pa.int32())),
            ("landmark_id", kept["landmark_id"]),
        ):
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
        return table

    def sample_labels(self, split: str) -> np.ndarray:
        """Return the renumbered label of each sample of a split, int64 (split rows,), and -1 for samples outside the
        view."""
        labels = np.full(self.manifest.splits[split].rows, -1, dtype=np.int64)
        labels[self._rows(split)["sample"].to_numpy()] = self._new_labels(self._rows(split))
        return labels

    def label_counts(self, split: str) -> np.ndarray:
        """Return the number of images per label in a split of the view, int64 (classes,)."""
        return np.bincount(self._new_labels(self._rows(split)), minlength=self.num_classes).astype(np.int64)

    def _rows(self, split: str) -> pa.Table:
        return self._by_split[split]

    @functools.cached_property
    def _by_split(self) -> dict[str, pa.Table]:
        return {split: self._kept.filter(pc.field("split") == split) for split in self.manifest.splits}

    def _new_labels(self, table: pa.Table) -> np.ndarray:
        assert self.label_map is not None
        return self.label_map[table["label"].to_numpy()]
