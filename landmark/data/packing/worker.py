"""The packing worker: packs one task's images into shards, and writes its part of the catalog and its rejects."""

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
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.packing.gldv2_source import Gldv2Source
from landmark.data.packing.index import UNKNOWN, UNWANTED, load_index
from landmark.data.packing.plan import read_task
from landmark.data.packing.shards import ShardSet
from landmark.data.packing.sources import Source, SyntheticSource
from landmark.data.packing.tasks import PARTS_FOLDER, WITHOUT_FOLDER, WORK_FOLDER, PackingTask
from landmark.data.sources.gldv2 import image_id
from landmark.data.sources.image_files import RejectedImage
from landmark.data.sources.tar import MAX_MEMBER_BYTES, TarReader
from landmark.data.sources.transcode import EncodedImage, pack_image
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
"""Packed images, shard by shard. `shard` is the index in the task."""
PART_REJECTS_SCHEMA = pa.schema([("plan_row", pa.int64()), *REJECTS_SCHEMA])
"""Rejected images. plan_row is NO_ROW for an image that is not in the plan."""
NO_ROW = -1


@dataclass
class _Tally:
    """Counts and rejects of a task."""

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
    """Packs tasks, as the function of the Ray Data tasks or in a loop of one process."""

    def __init__(self, output: Location, source: Source, packing: PackingConfig, plan_id: str) -> None:
        self.output = output
        self.work = output / WORK_FOLDER
        self.source = source
        self.packing = packing
        self.plan_id = plan_id

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Pack the tasks of a Ray Data batch. Returns one row per task: number, bytes_in, error.

        A UserError is returned instead of raised, so that Ray does not print its traceback.
        """
        done = [self._try(PackingTask(**json.loads(text))) for text in batch["task"]]
        return {key: [row[key] for row in done] for key in ("number", "bytes_in", "error")}

    def _try(self, task: PackingTask) -> dict[str, Any]:
        try:
            return self.pack(task) | {"error": ""}
        except UserError as error:
            return {"number": task.number, "bytes_in": 0, "error": str(error)}

    def pack(self, task: PackingTask) -> dict[str, Any]:
        """Pack one task. Returns its figures, which are also in its part file, written last."""
        tally = _Tally()
        with tempfile.TemporaryDirectory(prefix="landmark-pack-") as folder:
            shards = ShardSet(Path(folder), task, self.packing.row_group_rows)
            if task.tars:
                self._pack_tars(task, shards, tally)
            else:
                self._pack_rows(task, shards, tally)
            return self._publish(task, shards, tally)

    def _pack_rows(self, task: PackingTask, shards: ShardSet, tally: _Tally) -> None:
        """Pack planned rows."""
        rows = read_task(self.work, task)
        first = _first_row(self.work, task)
        for number, (row, data, reason) in enumerate(self._read(rows)):
            tally.members += 1
            tally.bytes_in += len(data)
            try:
                if reason:
                    raise RejectedImage(reason)
                packed = pack_image(data, self.packing, name=row["origin"])
            except RejectedImage as refused:
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
            yield from ordered_prefetch(lambda row: pool.submit(read, row), rows.to_pylist(), READS_AHEAD)

    def _pack_tars(self, task: PackingTask, shards: ShardSet, tally: _Tally) -> None:
        """Pack the wanted images of tars, each once. Raises UserError for a corrupt tar before anything is
        published."""
        assert isinstance(self.source, Gldv2Source)
        index = load_index(self.work, self.plan_id)
        taken = read_without(self.work, task.number)
        for tar in task.tars:
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
                except _UnplannedFile as fault:
                    tally.rejects.append((NO_ROW, found, f"{tar}:{name}", str(fault)))
                except RejectedImage as refused:
                    tally.rejects.append((row, found, f"{tar}:{name}", str(refused)))
                else:
                    taken.add(row)
                    shards.add(SPLITS[index.splits[row]], row, found, int(index.labels[row]), packed)
            tally.bytes_in += reader.bytes

    def _publish(self, task: PackingTask, shards: ShardSet, tally: _Tally) -> dict[str, Any]:
        """Publish the shards, then their part of the catalog, then the figures, which mark the task as done."""
        done, parts = shards.close()
        for shard in done:
            (self.output / shard.entry.path).upload(shard.file)
        unplanned = sum(reject[0] == NO_ROW for reject in tally.rejects)
        figures = {
            "number": task.number,
            "rows": len(parts),
            "rejects": len(tally.rejects) - unplanned,
            "unplanned": unplanned,
            "members": tally.members,
            "ignored": tally.ignored,
            "unchecked": tally.unchecked,
            "bytes_in": tally.bytes_in,
            "shards": [{"split": shard.split, **vars(shard.entry)} for shard in done],
        }
        write_table(part_file(self.work, task.number, ".parquet"), _table(parts, PART_SCHEMA))
        write_table(part_file(self.work, task.number, ".rejects.parquet"), _table(tally.rejects, PART_REJECTS_SCHEMA))
        part_file(self.work, task.number, ".json").write_text(json.dumps(figures))
        return figures


class _UnplannedFile(Exception):
    """A file in a tar that matches none of the planned images. Its text is the reason."""


def _pack_once(row: int, taken: bool, data: bytes | None, packing: PackingConfig, name: str) -> EncodedImage:
    if row == UNKNOWN:
        raise _UnplannedFile("no row")
    if taken:
        raise _UnplannedFile("duplicate")
    if data is None:
        raise RejectedImage(f"file larger than {MAX_MEMBER_BYTES >> 20} MiB")
    return pack_image(data, packing, name=name)


def part_file(work: Location, number: int, ending: str) -> Location:
    """Return a file of a task's part: .parquet, .rejects.parquet, or .json, which marks the task as done."""
    return work / PARTS_FOLDER / f"{number:06d}{ending}"


def without_file(work: Location, number: int) -> Location:
    """Return the file of the plan rows that a task leaves to an earlier task."""
    return work / WITHOUT_FOLDER / f"{number:06d}.json"


def read_without(work: Location, number: int) -> set[int]:
    """Return the plan rows that a task leaves to an earlier task with the same images."""
    try:
        return set(json.loads(without_file(work, number).read_text()))
    except NotFound:
        return set()


def _table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * len(schema)
    return pa.table(columns, schema=schema)


def _first_row(work: Location, task: PackingTask) -> int:
    """Return the plan row of a task's first row."""
    metadata = read_parquet(work / "plan.parquet", lambda file: file.metadata)
    if metadata.num_row_groups <= task.number:
        raise UserError(
            f"{work}: the plan has no task {task.number}; delete this folder, then run `landmark prepare` again"
        )
    return sum(metadata.row_group(number).num_rows for number in range(task.number))
