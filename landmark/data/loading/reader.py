"""Readers of plan tasks: threads return Arrow tables of compressed images."""

import threading
from collections.abc import Generator, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from landmark.config import LoaderConfig
from landmark.data.loading.plan import ReadTask
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.threads import DaemonPool
from landmark.storage import Location, NotFound, retrying
from landmark.storage.tables import damage_marked

OPEN_FILES = 16
MIN_AHEAD = 4
"""Minimum reads in progress."""


class RowGroupReader:
    """Reads tasks of one split: columns image (large binary), label int32, sample and draw int64, fault string.

    fault is null for readable rows. A task of a missing or corrupt shard is returned with its planned rows, without
    images. fault then contains the shard and the error, and the caller decides what to do. Thread-safe.
    """

    def __init__(self, split: Location, shard_paths: list[str]) -> None:
        self.split = split
        self.shard_paths = shard_paths
        self._idle: list[tuple[int, pq.ParquetFile]] = []
        self._lock = threading.Lock()

    def read(self, task: ReadTask) -> pa.Table:
        """Return the task's rows. Raises UserError if the storage fails."""
        path = self.split / self.shard_paths[task.shard]
        try:
            table = retrying(path.uri, damage_marked(lambda: self._read_row_group(task)))
            if task.rows[-1] >= len(table):
                raise pa.ArrowInvalid(f"row group {task.row_group} has {len(table)} rows, fewer than planned")
        except NotFound:
            return _lost(task, f"{path}: missing")
        except pa.ArrowInvalid as error:
            return _lost(task, f"{path}: corrupt ({' '.join(str(error).split())})")
        if not np.array_equal(task.rows, np.arange(len(table))):
            table = table.take(task.rows)
        return pa.table(
            {
                "image": table["image"].cast(pa.large_binary()),
                "label": table["label"],
                "sample": pa.array(task.rows + task.first_sample),
                "draw": pa.array(task.draws),
                "fault": pa.nulls(len(table), pa.string()),
            }
        )

    def read_all(self, read_tasks: list[ReadTask]) -> list[pa.Table]:
        """Return the rows of several tasks."""
        return [self.read(task) for task in read_tasks]

    def _read_row_group(self, task: ReadTask) -> pa.Table:
        known = self._take(task.shard)
        try:
            file = known or self._open(task.shard)
            table = file.read_row_group(task.row_group, columns=["label", "image"])
        except (OSError, pa.ArrowInvalid):
            # After a broken connection or a replaced file, an open file is unusable. Retry with a newly opened one.
            if known is not None:
                return self._read_row_group(task)
            raise
        self._keep(task.shard, file)
        return table

    def _open(self, shard: int) -> pq.ParquetFile:
        path = self.split / self.shard_paths[shard]
        stream = path.fs.open_input_file(path.path)
        return pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)

    def _take(self, shard: int) -> pq.ParquetFile | None:
        """Return an open file that no other thread uses, if there is one."""
        with self._lock:
            index = next((i for i, (which, _) in enumerate(self._idle) if which == shard), None)
            return None if index is None else self._idle.pop(index)[1]

    def _keep(self, shard: int, file: pq.ParquetFile) -> None:
        """Keep a file open for the next task of its shard, and close the least recently used one."""
        with self._lock:
            self._idle.append((shard, file))
            oldest = self._idle.pop(0)[1] if len(self._idle) > OPEN_FILES else None
        if oldest is not None:
            oldest.close()


def _lost(task: ReadTask, fault: str) -> pa.Table:
    """Return the rows of a task whose images cannot be read."""
    rows = len(task.rows)
    return pa.table(
        {
            "image": pa.nulls(rows, pa.large_binary()),
            "label": pa.nulls(rows, pa.int32()),
            "sample": pa.array(task.rows + task.first_sample),
            "draw": pa.array(task.draws),
            "fault": pa.array([fault] * rows, pa.string()),
        }
    )


def read_by_thread(
    reader: RowGroupReader, read_tasks: Iterable[ReadTask], config: LoaderConfig, stop: threading.Event | None = None
) -> Generator[pa.Table, None, None]:
    """Yield the tasks' tables in order, reading ahead in threads of this process. `close` it if it is not exhausted.

    stop: an event. If it is set, Stopped is raised instead of waiting for a read.
    """
    with DaemonPool(config.readers, "landmark-read") as pool:
        yield from ordered_prefetch(lambda task: pool.submit(reader.read, task), read_tasks, reads_ahead(config), stop)


def reads_ahead(config: LoaderConfig) -> int:
    """Return the number of reads in progress, in addition to the one that is waited for."""
    return max(MIN_AHEAD, 2 * config.readers)
