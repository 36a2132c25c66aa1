"""The packing worker: packs one unit's images into shards, and writes its part of the catalog and its rejects."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.config import PackingConfig, UserError
from landmark.data.dataset import REJECTS_SCHEMA, SPLITS
from landmark.data.loading.prefetch import run_ahead
from landmark.data.packing.gldv2_source import Gldv2Source
from landmark.data.packing.index import UNKNOWN, UNWANTED, load_index
from landmark.data.packing.plan import read_unit
from landmark.data.packing.shards import ShardSet
from landmark.data.packing.sources import Source, SyntheticSource
from landmark.data.packing.tasks import PARTS_FOLDER, WITHOUT_FOLDER, WORK_FOLDER, Unit
from landmark.data.sources.gldv2 import image_id
from landmark.data.sources.image_files import Refused
from landmark.data.sources.tar import LARGEST_MEMBER, TarReader
from landmark.data.sources.transcode import Packed, pack_image
from landmark.data.threads import DaemonPool
from landmark.storage import Location, NotFound
from landmark.storage.tables import read_parquet, write_table

READ_THREADS = 4
DRAW_THREADS = 1
"""Rendering is CPU-bound Python. Four threads that contend for the GIL took 1.5 times the CPU time."""
READS_AHEAD = 16

PART_SCHEMA = pa.schema(
    [
        ("plan_row", pa.int64()),
        ("shard", pa.int32()),
        ("row_group", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
"""Packed images, shard by shard. `shard` is the index in the unit."""
PART_REJECTS_SCHEMA = pa.schema([("plan_row", pa.int64()), *REJECTS_SCHEMA])
"""Rejected images. plan_row is NO_ROW for an image that is not in the plan."""
NO_ROW = -1


@dataclass
class _Tally:
    """Counts and rejects of a unit."""

    rejects: list[tuple[int, str, str, str]] = field(default_factory=list)
    """plan_row, image_id, origin, reason."""
    members: int = 0
    """Number of images read, wanted or not."""
    ignored: int = 0
    """Number of other files in the tars."""
    unchecked: int = 0
    """Number of tars without a published MD5."""
    bytes_in: int = 0


class Packer:
    """Packs units, as the function of the Ray Data tasks or in a loop of one process."""

    def __init__(self, output: Location, source: Source, packing: PackingConfig, plan_id: str) -> None:
        self.output = output
        self.work = output / WORK_FOLDER
        self.source = source
        self.packing = packing
        self.plan_id = plan_id

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Pack the units of a Ray Data batch. Returns one row per unit: number, bytes_in, error.

        A UserError is returned instead of raised, so that Ray does not print its traceback.
        """
        done = [self._try(Unit(**json.loads(text))) for text in batch["unit"]]
        return {key: [row[key] for row in done] for key in ("number", "bytes_in", "error")}

    def _try(self, unit: Unit) -> dict[str, Any]:
        try:
            return self.pack(unit) | {"error": ""}
        except UserError as error:
            return {"number": unit.number, "bytes_in": 0, "error": str(error)}

    def pack(self, unit: Unit) -> dict[str, Any]:
        """Pack one unit. Returns its figures, which are also in its part file, written last."""
        tally = _Tally()
        with tempfile.TemporaryDirectory(prefix="landmark-pack-") as folder:
            shards = ShardSet(Path(folder), unit, self.packing.row_group_rows)
            if unit.tars:
                self._pack_tars(unit, shards, tally)
            else:
                self._pack_rows(unit, shards, tally)
            return self._publish(unit, shards, tally)

    def _pack_rows(self, unit: Unit, shards: ShardSet, tally: _Tally) -> None:
        """Pack planned rows."""
        rows = read_unit(self.work, unit)
        first = _first_row(self.work, unit)
        for number, (row, data, reason) in enumerate(self._read(rows)):
            tally.members += 1
            tally.bytes_in += len(data)
            try:
                if reason:
                    raise Refused(reason)
                packed = pack_image(data, self.packing, name=row["origin"])
            except Refused as refused:
                tally.rejects.append((first + number, row["image_id"], row["origin"], str(refused)))
                continue
            shards.add(row["split"], first + number, row["image_id"], row["label"], packed)

    def _read(self, rows: pa.Table) -> Iterator[tuple[dict[str, Any], bytes, str]]:
        """Yield each planned row with its file's bytes, or the reason why there are none."""

        def read(row: dict[str, Any]) -> tuple[dict[str, Any], bytes, str]:
            try:
                return row, self.source.read(row), ""
            except NotFound:
                return row, b"", "missing"

        threads = DRAW_THREADS if isinstance(self.source, SyntheticSource) else READ_THREADS
        with DaemonPool(threads, "landmark-read") as pool:
            yield from run_ahead(lambda row: pool.submit(read, row), rows.to_pylist(), READS_AHEAD)

    def _pack_tars(self, unit: Unit, shards: ShardSet, tally: _Tally) -> None:
        """Pack the wanted images of tars, each once. Raises UserError for a corrupt tar before anything is
        published."""
        assert isinstance(self.source, Gldv2Source)
        index = load_index(self.work, self.plan_id)
        taken = read_without(self.work, unit.number)
        for tar in unit.tars:
            md5 = self.source.md5(tar)
            tally.unchecked += md5 is None
            reader = TarReader(self.source.root / tar, md5)
            for name, data in reader.members():
                found = image_id(name)
                if found is None:
                    tally.ignored += 1
                    continue
                tally.members += 1
                row = index.row(int(found, 16))
                if row == UNWANTED:
                    continue
                try:
                    packed = _pack_once(row, row in taken, data, self.packing, f"{tar}:{name}")
                except _Stranger as stranger:
                    tally.rejects.append((NO_ROW, found, f"{tar}:{name}", str(stranger)))
                except Refused as refused:
                    tally.rejects.append((row, found, f"{tar}:{name}", str(refused)))
                else:
                    taken.add(row)
                    shards.add(SPLITS[index.splits[row]], row, found, int(index.labels[row]), packed)
            tally.bytes_in += reader.bytes

    def _publish(self, unit: Unit, shards: ShardSet, tally: _Tally) -> dict[str, Any]:
        """Publish the shards, then their part of the catalog, then the figures, which mark the unit as done."""
        done, parts = shards.close()
        for shard in done:
            (self.output / shard.entry.path).upload(shard.file)
        strangers = sum(reject[0] == NO_ROW for reject in tally.rejects)
        figures = {
            "number": unit.number,
            "rows": len(parts),
            "rejects": len(tally.rejects) - strangers,
            "strangers": strangers,
            "members": tally.members,
            "ignored": tally.ignored,
            "unchecked": tally.unchecked,
            "bytes_in": tally.bytes_in,
            "shards": [{"split": shard.split, **vars(shard.entry)} for shard in done],
        }
        write_table(part_file(self.work, unit.number, ".parquet"), _table(parts, PART_SCHEMA))
        write_table(part_file(self.work, unit.number, ".rejects.parquet"), _table(tally.rejects, PART_REJECTS_SCHEMA))
        part_file(self.work, unit.number, ".json").write_text(json.dumps(figures))
        return figures


class _Stranger(Exception):
    """A file in a tar that matches none of the planned images. Its text is the reason."""


def _pack_once(row: int, taken: bool, data: bytes | None, packing: PackingConfig, name: str) -> Packed:
    if row == UNKNOWN:
        raise _Stranger("no row")
    if taken:
        raise _Stranger("duplicate")
    if data is None:
        raise Refused(f"file larger than {LARGEST_MEMBER >> 20} MiB")
    return pack_image(data, packing, name=name)


def part_file(work: Location, number: int, ending: str) -> Location:
    """Return a file of a unit's part: .parquet, .rejects.parquet, or .json, which marks the unit as done."""
    return work / PARTS_FOLDER / f"{number:06d}{ending}"


def without_file(work: Location, number: int) -> Location:
    """Return the file of the plan rows that a unit leaves to an earlier unit."""
    return work / WITHOUT_FOLDER / f"{number:06d}.json"


def read_without(work: Location, number: int) -> set[int]:
    """Return the plan rows that a unit leaves to an earlier unit with the same images."""
    try:
        return set(json.loads(without_file(work, number).read_text()))
    except NotFound:
        return set()


def _table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * len(schema)
    return pa.table(columns, schema=schema)


def _first_row(work: Location, unit: Unit) -> int:
    """Return the plan row of a unit's first row."""
    metadata = read_parquet(work / "plan.parquet", lambda file: file.metadata)
    if metadata.num_row_groups <= unit.number:
        raise UserError(
            f"{work}: the plan has no unit {unit.number}; delete this folder, then run `landmark prepare` again"
        )
    return sum(metadata.row_group(number).num_rows for number in range(unit.number))
