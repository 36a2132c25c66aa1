"""A packed dataset: its manifest, labels, catalog and the locations of its shards."""

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import SubsetConfig, UserError, from_mapping, nearest, to_mapping
from landmark.storage import Location, NotFound, lacks_bucket, locate
from landmark.storage.tables import read_parquet, read_table

T = TypeVar("T")

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")
SELECTION_KIND = "selection"
"""The `kind` in the manifest of a cleaned dataset."""

LABELS_SCHEMA = pa.schema(
    [("label", pa.int32()), ("landmark_id", pa.string()), ("name", pa.string()), ("images", pa.int64())]
)
CATALOG_SCHEMA = pa.schema(
    [
        ("sample", pa.int64()),
        ("image_id", pa.string()),
        ("landmark_id", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("row_group", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
REJECTS_SCHEMA = pa.schema([("image_id", pa.string()), ("origin", pa.string()), ("reason", pa.string())])
SHARD_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("label", pa.int32()),
        ("image", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)


@dataclass(kw_only=True, frozen=True)
class ShardEntry:
    """One Parquet file of a split."""

    path: str
    """Path relative to the dataset, such as train/00000.parquet."""
    rows: int
    """Number of images."""
    row_groups: int
    """Number of row groups."""
    bytes: int
    """File size, bytes."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""


@dataclass(kw_only=True, frozen=True)
class SplitEntry:
    """One split of a dataset."""

    rows: int
    """Number of images."""
    shards: list[ShardEntry]
    """The shards, in the order of the sample numbers."""


@dataclass(kw_only=True, frozen=True)
class Manifest:
    """Contents of a packed dataset. The manifest is written last, so a dataset with a manifest is complete."""

    schema_version: int
    """Version of this layout."""
    created_by: str
    """Program and version that wrote the dataset."""
    source: dict[str, Any]
    """The config of `prepare`, including the source of the images."""
    seed: int
    """Seed of the split and the row order."""
    short_side: int
    """Maximum short side of an image, pixels."""
    quality: int
    """JPEG quality."""
    row_group_rows: int
    """Rows per row group. The last row group of a shard may have fewer."""
    classes: int
    """Number of labels."""
    rejects: int
    """Number of rejected images."""
    splits: dict[str, SplitEntry]
    """train, val and test."""
    relabelled: bool = False
    """Whether the labels are in the catalog instead of the shards. This is so if classes without a readable image were
    dropped."""
    source_state: dict[str, Any] | None = None
    """State of the source files when they were listed, to detect changes. None if it is unknown."""

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps(to_mapping(self), indent=1) + "\n"

    def shards_digest(self) -> str:
        """Return the SHA-256 over the SHA-256 values of all shards, hexadecimal."""
        shards = [shard.sha256 for entry in self.splits.values() for shard in entry.shards]
        return hashlib.sha256("\n".join(shards).encode()).hexdigest()


class PackedDataset:
    """A packed dataset opened for reading. Metadata is read once. Pixels are read on demand.

    The sample number of a row is its position in the split: the rows of the earlier shards of the split plus the row in
    its shard. Sample numbers are 0 to rows - 1 and identify images in all accounting.
    """

    subset = SubsetConfig()
    """The subset of images in this view."""
    subset_seed = 0
    """Seed of the subset's random choices."""
    label_map: np.ndarray | None = None
    """Map from the labels in the shards to labels, int64 (labels,). None for the identity."""
    relabelled = False
    """Whether images have other labels than in the shards. If so, only `sample_labels` returns the correct labels."""

    def __init__(self, location: Location, manifest: Manifest) -> None:
        self.location = location
        self.manifest = manifest
        self.relabelled = manifest.relabelled
        self.uri = location.uri
        """URI that opens this dataset again, without its subset. It differs from `location` for a cleaned dataset."""

    @classmethod
    def open(cls, uri: str) -> "PackedDataset":
        """Open the dataset at a path or URI. Raises UserError if it is missing or incomplete."""
        location = locate(uri)
        try:
            text = (location / "manifest.json").read_text()
        except NotFound:
            if lacks_bucket(location):
                raise UserError(f"{uri}: no such bucket; create it or check its name") from None
            state = "incomplete; run the same `landmark prepare` again" if location.exists() else "missing"
            raise UserError(f"{uri}: no manifest.json, so the dataset is {state}, or check the path") from None
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{uri}/manifest.json: not JSON ({error}); prepare the dataset again") from None
        if values.get("kind") == SELECTION_KIND:
            raise UserError(f"{uri}: is a cleaned dataset; expected a packed dataset, such as {values.get('dataset')}")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{uri}/manifest.json: schema_version is {values.get('schema_version')!r}; expected "
                f"{SCHEMA_VERSION}; prepare the dataset again with this version of landmark"
            )
        return cls(location, from_mapping(Manifest, values, f"{uri}/manifest.json"))

    @functools.cached_property
    def content_id(self) -> str:
        """Content hash of the dataset, independent of its location: SHA-256, hexadecimal. A subset has the hash of its
        dataset."""
        return self.manifest.shards_digest()

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return self.manifest.classes

    @functools.cached_property
    def labels(self) -> pa.Table:
        """The labels, in order. Schema: LABELS_SCHEMA."""
        return read_table(self.location / "labels.parquet")

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return self.labels["name"].to_pylist()

    def split(self, name: str) -> SplitEntry:
        """Return the manifest's entry of a split. Raises UserError if the split is unknown or empty."""
        if name not in self.manifest.splits:
            raise UserError(f"{self.location}: no split {name!r}; {nearest(name, self.manifest.splits)}")
        entry = self.manifest.splits[name]
        if not entry.rows:
            raise UserError(f"{self.location}: the {name} split is empty; {self._empty_because(name)}")
        return entry

    def _empty_because(self, name: str) -> str:
        """Return why a split is empty and how to fix it, from the config that prepared the dataset."""
        source = self.manifest.source
        if source.get("source") == "dataset" or name == "train":
            return "it is also empty in the packed source or subset; prepare from another source or subset"
        if not (fraction := source.get("split", {}).get(name, 0)):
            return f"prepare the dataset with split.{name} above 0"
        rows = sum(entry.rows for entry in self.manifest.splits.values())
        return (
            f"split.{name} is {fraction:g}, but {rows:,} images of {self.manifest.classes:,} classes are too few: each class "
            "keeps one or more for train, and groups are not split; add images or increase that fraction"
        )

    def selected(self, split: str) -> np.ndarray | None:
        """Return a mask of the samples of a split that are in this view, bool (split rows,). None for all."""
        return None

    def full_catalog(self, columns: list[str] | None = None) -> pa.Table:
        """Return the catalog's rows of all splits, with the labels of the shards. `columns` restricts the columns."""
        return read_table(self.location / "catalog.parquet", columns=columns)

    def catalog(self, split: str) -> pa.Table:
        """Return the catalog's rows of a split, sorted by `sample`. Schema: CATALOG_SCHEMA."""
        table = read_table(self.location / "catalog.parquet", filters=pc.field("split") == split)
        return table.sort_by("sample")

    def sample_labels(self, split: str) -> np.ndarray:
        """Return the label of each sample of a split, int64 (split rows,), and -1 for samples outside this view."""
        only = pc.field("split") == split
        table = read_table(self.location / "catalog.parquet", columns=["sample", "label"], filters=only)
        labels = np.full(self.manifest.splits[split].rows, -1, dtype=np.int64)
        labels[table["sample"].to_numpy()] = table["label"].to_numpy()
        return labels

    def sample_groups(self, split: str) -> np.ndarray | None:
        """Return the group of each sample of a split, int64 (split rows,), 0 to g - 1. None if the dataset has no
        groups.

        Groups come from the groups file, `folders.groups`. An image without a group is a group of its own.
        """
        place = self.location / "catalog.parquet"
        if "group" not in read_parquet(place, lambda file: file.schema_arrow.names):
            return None
        table = read_table(place, columns=["sample", "group"], filters=pc.field("split") == split).sort_by("sample")
        return table["group"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)

    def label_counts(self, split: str) -> np.ndarray:
        """Return the number of images per label in a split, int64 (classes,)."""
        labels = read_table(self.location / "catalog.parquet", columns=["label"], filters=pc.field("split") == split)[
            "label"
        ]
        return np.bincount(labels.to_numpy(), minlength=self.num_classes).astype(np.int64)
