"""The packing worker: one unit's images become one shard, its part of the catalog and its rejects."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from landmark.config import PackingConfig, UserError
from landmark.data.dataset import REJECTS_SCHEMA, SHARD_SCHEMA, read_parquet, write_table
from landmark.data.images import Packed, Refused, pack_image
from landmark.data.packing.plan import WORK_FOLDER, Unit, read_unit
from landmark.data.packing.sources import Source
from landmark.data.reader import run_ahead
from landmark.storage import Location, NotFound

READ_THREADS = 4
READS_AHEAD = 16

PART_SCHEMA = pa.schema(
    [("plan_row", pa.int64()), ("row_group", pa.int32()), ("width", pa.int32()), ("height", pa.int32())]
)


class ShardWriter:
    """Writes rows into a local Parquet file, a row group at a time."""

    def __init__(self, path: Path, row_group_rows: int) -> None:
        self.path = path
        self.row_group_rows = row_group_rows
        self.rows = 0
        self.row_groups = 0
        # JPEG does not shrink further, and an uncompressed column is read without a copy.
        # The checksums of its pages let a reader notice one flipped byte, which a JPEG decoder would not.
        self._writer = pq.ParquetWriter(
            path,
            SHARD_SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=["label"],
            write_page_checksum=True,
        )
        self._pending: list[tuple[str, int, bytes, int, int]] = []

    def add(self, image_id: str, label: int, packed: Packed) -> int:
        """Add a row; returns the row group it falls into."""
        self._pending.append((image_id, label, packed.jpeg, packed.height, packed.width))
        self.rows += 1
        row_group = self.row_groups
        if len(self._pending) == self.row_group_rows:
            self._flush()
        return row_group

    def close(self) -> None:
        """Write what is left and end the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            columns = [list(column) for column in zip(*self._pending, strict=True)]
            self._writer.write_table(pa.table(columns, schema=SHARD_SCHEMA), row_group_size=self.row_group_rows)
            self.row_groups += 1
            self._pending = []


class Packer:
    """Packs units: the function of the Ray Data job's tasks, or of a plain loop in one process."""

    def __init__(self, output: Location, source: Source, packing: PackingConfig) -> None:
        self.output = output
        self.work = output / WORK_FOLDER
        self.source = source
        self.packing = packing

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Pack the units of a Ray Data batch; returns a row of figures for each."""
        done = [self.pack(Unit(**json.loads(text))) for text in batch["unit"]]
        return {
            key: [figures[key] for figures in done] for key in ("number", "rows", "rejects", "bytes_in", "bytes_out")
        }

    def pack(self, unit: Unit) -> dict[str, Any]:
        """Pack one unit; returns its figures, which also lie in its part file, written last."""
        rows = read_unit(self.work, unit)
        first = _first_row(self.work, unit)
        parts, rejects = [], []
        bytes_in = 0
        with tempfile.TemporaryDirectory(prefix="landmark-pack-") as folder:
            writer = ShardWriter(Path(folder) / "shard.parquet", self.packing.row_group_rows)
            for number, (row, data, reason) in enumerate(self._read(rows)):
                bytes_in += len(data)
                try:
                    if reason:
                        raise Refused(reason)
                    packed = pack_image(data, self.packing)
                except Refused as refused:
                    rejects.append((row["image_id"], row["origin"], str(refused)))
                    continue
                row_group = writer.add(row["image_id"], row["label"], packed)
                parts.append((first + number, row_group, packed.width, packed.height))
            writer.close()
            figures = self._publish(unit, writer, parts, rejects)
        return figures | {"number": unit.number, "bytes_in": bytes_in}

    def _read(self, rows: pa.Table) -> Iterator[tuple[dict[str, Any], bytes, str]]:
        """Yield each planned row with its file's bytes, or the reason why there are none."""

        def read(row: dict[str, Any]) -> tuple[dict[str, Any], bytes, str]:
            try:
                return row, self.source.read(row), ""
            except NotFound:
                return row, b"", "missing"

        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="landmark-read") as pool:
            yield from run_ahead(pool, read, rows.to_pylist(), READS_AHEAD)

    def _publish(self, unit: Unit, writer: ShardWriter, parts: list[tuple], rejects: list[tuple]) -> dict[str, Any]:
        """Publish the shard, then its part of the catalog, then the figures that say it is done."""
        shard = self.output / unit.path
        figures: dict[str, Any] = {"rows": writer.rows, "row_groups": writer.row_groups, "rejects": len(rejects)}
        figures |= {"bytes_out": writer.path.stat().st_size, "sha256": "", "path": unit.path, "split": unit.split}
        if writer.rows:
            figures["sha256"] = file_sha256(writer.path)
            shard.upload(writer.path)
        part = self.work / "parts" / f"{unit.number:06d}"
        columns = [list(column) for column in zip(*parts, strict=True)] or [[]] * len(PART_SCHEMA)
        write_table(Location(part.uri + ".parquet"), pa.table(columns, schema=PART_SCHEMA))
        columns = [list(column) for column in zip(*rejects, strict=True)] or [[]] * len(REJECTS_SCHEMA)
        write_table(Location(part.uri + ".rejects.parquet"), pa.table(columns, schema=REJECTS_SCHEMA))
        Location(part.uri + ".json").write_text(json.dumps(figures))
        return figures


def file_sha256(path: Path) -> str:
    """Return a local file's SHA-256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_row(work: Location, unit: Unit) -> int:
    """Return the plan row of a unit's first row."""
    metadata = read_parquet(work / "plan.parquet", lambda file: file.metadata)
    if metadata.num_row_groups <= unit.number:
        raise UserError(f"{work}: the plan has no unit {unit.number}; delete the folder and prepare again")
    return sum(metadata.row_group(number).num_rows for number in range(unit.number))
