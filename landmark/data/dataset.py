"""A packed dataset: its manifest, labels and catalog, and where its shards lie."""

import functools
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from landmark.config import SubsetConfig, UserError, from_mapping, nearest, to_mapping
from landmark.storage import Location, NotFound, lacks_bucket, locate, retrying

T = TypeVar("T")

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test")
SELECTION_KIND = "selection"
"""What the manifest of a cleaned dataset says that it is."""
_DAMAGE = ("CRC checksum", "thrift", "end of stream", "Unexpected end", "Corrupt", "corrupt", "Parquet", "row group")

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
    """Path below the dataset, such as train/00000.parquet."""
    rows: int
    """Images."""
    row_groups: int
    """Row groups."""
    bytes: int
    """File size."""
    sha256: str
    """Hexadecimal SHA-256 of the file."""


@dataclass(kw_only=True, frozen=True)
class SplitEntry:
    """One split of a dataset."""

    rows: int
    """Images."""
    shards: list[ShardEntry]
    """Its shards, in the order that numbers the samples."""


@dataclass(kw_only=True, frozen=True)
class Manifest:
    """What a packed dataset holds; written last, so that a dataset with one is whole."""

    schema_version: int
    """Version of this layout."""
    created_by: str
    """Program and version that wrote it."""
    source: dict[str, Any]
    """Where the images came from: the config of `prepare`."""
    seed: int
    """Seed of split and order."""
    short_side: int
    """Greatest short side of an image, pixels."""
    quality: int
    """JPEG quality."""
    row_group_rows: int
    """Rows of every row group but a shard's last."""
    classes: int
    """Number of labels."""
    rejects: int
    """Images refused."""
    splits: dict[str, SplitEntry]
    """train, val and test."""
    relabelled: bool = False
    """Whether labels are those of the catalog and not of the shards: classes without a usable image were left out."""
    source_state: dict[str, Any] | None = None
    """What told the source's files from others when they were listed; None: not known."""

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps(to_mapping(self), indent=1) + "\n"

    def shards_digest(self) -> str:
        """Return the SHA-256 of its shards' own, hexadecimal."""
        shards = [shard.sha256 for entry in self.splits.values() for shard in entry.shards]
        return hashlib.sha256("\n".join(shards).encode()).hexdigest()


class PackedDataset:
    """A packed dataset opened for reading: metadata is read once, pixels stay where they are.

    A sample's number is its row's position in its split: the rows of the split's earlier shards plus its
    row in the shard. It is dense, 0 to rows - 1, and the key of all accounting.
    """

    subset = SubsetConfig()
    """Which of the dataset's images are looked at."""
    subset_seed = 0
    """Seed of the subset's random choices."""
    label_map: np.ndarray | None = None
    """Label of each label in the shards, int64 (labels,); None: the same."""
    relabelled = False
    """Whether images have other labels than in the shards: then `sample_labels` alone knows them."""

    def __init__(self, location: Location, manifest: Manifest) -> None:
        self.location = location
        self.manifest = manifest
        self.relabelled = manifest.relabelled
        self.uri = location.uri
        """What opens it again: `location`, unless it is cleaned; a subset's own choice apart."""

    @classmethod
    def open(cls, uri: str) -> "PackedDataset":
        """Open the dataset at a path or URI; raises UserError where there is none or it is unfinished."""
        location = locate(uri)
        try:
            text = (location / "manifest.json").read_text()
        except NotFound:
            if lacks_bucket(location):
                raise UserError(f"{uri}: no such bucket; create it or check its name") from None
            state = "an unfinished dataset; run the same `landmark prepare` again" if location.exists() else "not there"
            raise UserError(f"{uri}: no manifest.json, so it is {state}, or check the path") from None
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{uri}/manifest.json: not JSON ({error}); prepare the dataset again") from None
        if values.get("kind") == SELECTION_KIND:
            raise UserError(f"{uri}: a cleaned dataset; a packed one is needed here: {values.get('dataset')}")
        if values.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{uri}/manifest.json: schema_version is {values.get('schema_version')!r}; this landmark reads "
                f"{SCHEMA_VERSION}: prepare the dataset again"
            )
        return cls(location, from_mapping(Manifest, values, f"{uri}/manifest.json"))

    @functools.cached_property
    def content_id(self) -> str:
        """What tells the dataset's content from any other's, wherever it is stored: SHA-256, hexadecimal; a subset has its base's."""
        return self.manifest.shards_digest()

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return self.manifest.classes

    @functools.cached_property
    def labels(self) -> pa.Table:
        """The labels, in order: LABELS_SCHEMA."""
        return read_table(self.location / "labels.parquet")

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return self.labels["name"].to_pylist()

    def split(self, name: str) -> SplitEntry:
        """Return the manifest's entry of a split; raises UserError for an unknown or empty one."""
        if name not in self.manifest.splits:
            raise UserError(f"{self.location}: no split {name!r}; {nearest(name, self.manifest.splits)}")
        entry = self.manifest.splits[name]
        if not entry.rows:
            raise UserError(f"{self.location}: the {name} split is empty: {self._empty_because(name)}")
        return entry

    def _empty_because(self, name: str) -> str:
        """Return why a split has no image, and what to do about it, by the config that the dataset was prepared with."""
        source = self.manifest.source
        if source.get("source") == "dataset" or name == "train":
            return "so it is in the source or subset that was packed; prepare from another one"
        if not (share := source.get("split", {}).get(name, 0)):
            return f"prepare the dataset with split.{name} above 0"
        rows = sum(entry.rows for entry in self.manifest.splits.values())
        return (
            f"split.{name} is {share:g}, but {rows:,} images of {self.manifest.classes:,} classes are too few, as each class "
            "keeps one or more for train, and a group is not divided; add images or raise the share"
        )

    def selected(self, split: str) -> np.ndarray | None:
        """Return which samples of a split are looked at, bool (split rows,); None: all."""
        return None

    def full_catalog(self, columns: list[str] | None = None) -> pa.Table:
        """Return the catalog's rows of all splits with the labels of the shards' numbering; `columns`: these alone."""
        return read_table(self.location / "catalog.parquet", columns=columns)

    def catalog(self, split: str) -> pa.Table:
        """Return the catalog's rows of a split, in the order of `sample`: CATALOG_SCHEMA."""
        table = read_table(self.location / "catalog.parquet", filters=pc.field("split") == split)
        return table.sort_by("sample")

    def sample_labels(self, split: str) -> np.ndarray:
        """Return the label of each sample of a split, int64 (split rows,); -1 for one that is not looked at."""
        only = pc.field("split") == split
        table = read_table(self.location / "catalog.parquet", columns=["sample", "label"], filters=only)
        labels = np.full(self.manifest.splits[split].rows, -1, dtype=np.int64)
        labels[table["sample"].to_numpy()] = table["label"].to_numpy()
        return labels

    def sample_groups(self, split: str) -> np.ndarray | None:
        """Return the group of each sample of a split, int64 (split rows,), 0 to g - 1; None where the dataset has no groups.

        Groups are of a groups file, `folders.groups`; an image without one is a group by itself.
        """
        place = self.location / "catalog.parquet"
        if "group" not in read_parquet(place, lambda file: file.schema_arrow.names):
            return None
        table = read_table(place, columns=["sample", "group"], filters=pc.field("split") == split).sort_by("sample")
        return table["group"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)

    def label_counts(self, split: str) -> np.ndarray:
        """Return how many images each label has in a split: int64 (classes,)."""
        labels = read_table(self.location / "catalog.parquet", columns=["label"], filters=pc.field("split") == split)[
            "label"
        ]
        return np.bincount(labels.to_numpy(), minlength=self.num_classes).astype(np.int64)


def read_table(location: Location, **options: Any) -> pa.Table:
    """Read a whole Parquet file; `options` go to `pyarrow.parquet.read_table`."""

    def read() -> pa.Table:
        with location.open_once() as stream:
            return pq.read_table(stream, **options)

    return _named(location, read)


def read_parquet(location: Location, read: Callable[[pq.ParquetFile], T]) -> T:
    """Return what `read` makes of an open Parquet file; opened anew where storage fails in a way that passes."""

    def opened() -> T:
        with location.open_once() as stream:
            return read(pq.ParquetFile(stream, page_checksum_verification=True))

    return _named(location, opened)


def _named(location: Location, read: Callable[[], T]) -> T:
    """Run a reader of a Parquet file; raises UserError naming the file where it is damaged."""
    try:
        return retrying(location.uri, damage_marked(read))
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{location}: not a readable Parquet file ({reason}); prepare the dataset again") from None


def damage_marked(read: Callable[[], T]) -> Callable[[], T]:
    """Return a reader of Parquet that raises pa.ArrowInvalid for all damaged content.

    pyarrow raises OSError both for content and for storage; only the latter passes, and has an error number or
    names its client.
    """

    def marked() -> T:
        try:
            return read()
        except OSError as error:
            text = str(error)
            if error.errno is None and "AWS Error" not in text and any(word in text for word in _DAMAGE):
                raise pa.ArrowInvalid(text) from None
            raise

    return marked


def write_table(location: Location, table: pa.Table) -> None:
    """Publish a table as one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    location.write_bytes(buffer.getvalue())
