"""Writing of shards: rows become Parquet files with small row groups in a local folder, ready to be published."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from landmark.data.dataset import SHARD_SCHEMA, SPLITS, ShardEntry
from landmark.data.packing.tasks import PackingTask
from landmark.data.sources.transcode import EncodedImage


class ShardWriter:
    """Writes rows into a local Parquet file, one row group at a time."""

    def __init__(self, path: Path, row_group_rows: int) -> None:
        self.path = path
        self.row_group_rows = row_group_rows
        self.rows = 0
        self.row_groups = 0
        # JPEG does not compress further, and an uncompressed column is read without a copy. Page checksums detect
        # flipped bytes, which a JPEG decoder would not.
        self._writer = pq.ParquetWriter(
            path,
            SHARD_SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=["label"],
            write_page_checksum=True,
        )
        self._pending: list[tuple[str, int, bytes, int, int]] = []

    def add(self, image_id: str, label: int, packed: EncodedImage) -> int:
        """Add a row. Returns its row group."""
        self._pending.append((image_id, label, packed.jpeg, packed.height, packed.width))
        self.rows += 1
        row_group = self.row_groups
        if len(self._pending) == self.row_group_rows:
            self._flush()
        return row_group

    def close(self) -> None:
        """Write the remaining rows and close the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            columns = [list(column) for column in zip(*self._pending, strict=True)]
            self._writer.write_table(pa.table(columns, schema=SHARD_SCHEMA), row_group_size=self.row_group_rows)
            self.row_groups += 1
            self._pending = []


@dataclass(kw_only=True, frozen=True)
class WrittenShard:
    """A finished shard in a local folder."""

    split: str
    """train, val or test."""
    file: Path
    """Path of the local file."""
    entry: ShardEntry
    """The shard's entry in the manifest."""


class ShardSet:
    """The shards of one task: of one split or of all, one or several per split."""

    def __init__(self, folder: Path, task: PackingTask, row_group_rows: int) -> None:
        self.folder = folder
        self.task = task
        self.row_group_rows = row_group_rows
        self._shards: dict[str, list[tuple[ShardWriter, list[tuple[int, int, int, int]]]]] = {s: [] for s in SPLITS}

    def add(self, split: str, plan_row: int, image_id: str, label: int, packed: EncodedImage) -> None:
        """Add an image to its split's shard. Starts the next shard if this one is full."""
        shards = self._shards[split]
        limit = self.task.shard_rows.get(split)
        if not shards or (limit is not None and shards[-1][0].rows >= limit):
            if shards:
                shards[-1][0].close()
            path = self.folder / f"{split}-{len(shards)}.parquet"
            shards.append((ShardWriter(path, self.row_group_rows), []))
        writer, parts = shards[-1]
        row_group = writer.add(image_id, label, packed)
        parts.append((plan_row, row_group, packed.width, packed.height))

    def close(self) -> tuple[list[WrittenShard], list[tuple[int, int, int, int, int]]]:
        """Close the files. Returns the shards, and plan_row, shard, row_group, width, height of each image in their
        order."""
        written: list[WrittenShard] = []
        rows: list[tuple[int, int, int, int, int]] = []
        for split, shards in self._shards.items():
            for number, (writer, parts) in enumerate(shards):
                writer.close()
                rows += [(row, len(written), group, width, height) for row, group, width, height in parts]
                entry = ShardEntry(
                    path=self.task.shard_path(split, number),
                    rows=writer.rows,
                    row_groups=writer.row_groups,
                    bytes=writer.path.stat().st_size,
                    sha256=file_sha256(writer.path),
                )
                written.append(WrittenShard(split=split, file=writer.path, entry=entry))
        return written, rows


def file_sha256(path: Path) -> str:
    """Return a local file's SHA-256, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
