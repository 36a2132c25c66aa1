"""Cleaned datasets: the images that cleaning kept, read from the packed dataset, some with a corrected label."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import UserError
from landmark.data.dataset import SCHEMA_VERSION, PackedDataset
from landmark.data.dataset_view import COLUMNS, FilteredDataset
from landmark.storage import Location, NotFound
from landmark.storage.tables import read_table

KEPT_SCHEMA = pa.schema([("split", pa.string()), ("sample", pa.int64()), ("label", pa.int32())])


class CleanedDataset(FilteredDataset):
    """A cleaned dataset as `landmark clean` writes it, a filtered view of a packed dataset with some corrected labels.

    Pixels, shards, sample numbers, `location` and `manifest` are those of the packed dataset.
    """

    none_left = "{location}: cleaning kept no image in the {split} split; clean again with less strict thresholds"

    def __init__(self, dataset: PackedDataset, kept: pa.Table) -> None:
        super().__init__(dataset, kept)
        self.relabelled = True
        self.content_id = _content_id(dataset, kept)

    @classmethod
    def of(cls, location: Location, values: dict[str, Any]) -> "CleanedDataset":
        """Open the cleaned dataset at a location with this manifest. Raises UserError if it or its packed dataset is
        corrupt."""
        place = f"{location}/manifest.json"
        if values.get("schema_version") != SCHEMA_VERSION or not isinstance(values.get("dataset"), str):
            raise UserError(f"{place}: written by another version of landmark; clean the dataset again")
        try:
            base = PackedDataset.open(values["dataset"])
        except UserError as error:
            raise UserError(f"{place}: the dataset that was cleaned cannot be opened: {error}") from None
        if base.manifest.shards_digest() != values.get("fingerprint"):
            raise UserError(f"{place}: {base.location} was packed again after cleaning; clean it again")
        try:
            kept = read_table(location / "kept.parquet")
        except NotFound:
            raise UserError(f"{location}/kept.parquet: missing; clean the dataset again") from None
        if kept.schema.names != KEPT_SCHEMA.names or len(kept) != values.get("rows"):
            raise UserError(f"{location}/kept.parquet: does not match manifest.json; clean the dataset again")
        cleaned = cls(base, _joined(base, kept))
        cleaned.uri = location.uri
        return cleaned

    def full_catalog(self, columns: list[str] | None = None) -> pa.Table:
        """Return the catalog's rows of the kept images. The labels use the numbering of the shards."""
        if columns is not None and set(columns) <= set(COLUMNS):
            return self._kept.select(columns)
        table = super().full_catalog()
        parts = []
        for split in self.manifest.splits:
            rows = table.filter(pc.field("split") == split).sort_by("sample").filter(pa.array(self.selected(split)))
            kept = self._rows(split)
            for name in ("label", "landmark_id"):
                field = rows.schema.field(name)
                rows = rows.set_column(rows.schema.get_field_index(name), field, kept[name].cast(field.type))
            parts.append(rows)
        return pa.concat_tables(parts)


def _joined(base: PackedDataset, kept: pa.Table) -> pa.Table:
    """Join the kept rows with the catalog, by split and sample. Columns: COLUMNS."""
    landmark_ids = base.labels["landmark_id"]
    table = base.full_catalog(COLUMNS)
    parts = []
    for split, entry in base.manifest.splits.items():
        split_rows = kept.filter(pc.field("split") == split)
        labels = np.full(entry.rows, -1, dtype=np.int32)
        labels[split_rows["sample"].to_numpy()] = split_rows["label"].to_numpy()
        rows = table.filter(pc.field("split") == split).sort_by("sample").filter(pa.array(labels >= 0))
        new = pa.array(labels[labels >= 0])
        ids = landmark_ids.take(new).cast(rows.schema.field("landmark_id").type)
        rows = rows.set_column(rows.schema.get_field_index("label"), "label", new)
        parts.append(rows.set_column(rows.schema.get_field_index("landmark_id"), "landmark_id", ids))
    return pa.concat_tables(parts)


def _content_id(base: PackedDataset, kept: pa.Table) -> str:
    found = hashlib.sha256(base.content_id.encode())
    for split in base.manifest.splits:
        rows = kept.filter(pc.field("split") == split).sort_by("sample")
        found.update(f"\n{split} {len(rows)}\n".encode())
        for name in ("sample", "label"):
            found.update(rows[name].to_numpy().astype(np.int64).tobytes())
    return found.hexdigest()
