"""Readers of plan tasks: threads or Ray actors return Arrow tables of compressed images."""

import contextlib
import threading
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from landmark.config import LoaderConfig
from landmark.data.cache.split_cache import SplitCache
from landmark.data.loading.actors import ActorPool
from landmark.data.loading.plan import ReadTask
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.threads import DaemonPool
from landmark.storage import Location, NotFound, retrying
from landmark.storage.tables import damage_marked

OPEN_FILES = 16
MIN_AHEAD = 4
"""Minimum reads in progress."""
CALL_ROWS = 256
"""Minimum rows per call of a reader actor."""


class RowGroupReader:
    """Reads tasks of one split: columns image (large binary), label int32, sample and draw int64, fault string.

    fault is null for readable rows. A task of a missing or corrupt shard is returned with its planned rows, without
    images. fault then contains the shard and the error, and the caller decides what to do. Thread-safe.
    """

    def __init__(self, split: Location, shard_paths: list[str], cache: SplitCache | None = None) -> None:
        self.split = split
        self.shard_paths = shard_paths
        self.cache = cache
        self._file_bytes: dict[int, int] = {}
        """Size of each shard's file when it was opened last."""
        self._idle: list[tuple[int, pq.ParquetFile]] = []
        self._lock = threading.Lock()

    def read(self, task: ReadTask) -> pa.Table:
        """Return the task's rows. Raises UserError if the storage fails."""
        path = self.split / self.shard_paths[task.shard]

        def load() -> pa.Table:
            return retrying(path.uri, damage_marked(lambda: self._read_row_group(task)))

        try:
            if self.cache is None:
                table = load()
            else:
                table = self.cache.read(task.shard, task.row_group, load, lambda: self._file_bytes.get(task.shard))
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
        self._file_bytes[shard] = stream.size()
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


def read_by_ray(
    reader: RowGroupReader, read_tasks: Iterable[ReadTask], config: LoaderConfig, stop: threading.Event | None = None
) -> Generator[pa.Table, None, None]:
    """Yield the tasks' tables in order, reading ahead in Ray actors. `close` it if it is not exhausted.

    The object store contains only the tasks that are read ahead. A table's buffers occupy the store until the table is
    released. Tasks are taken from `read_tasks` on demand. stop: as for `read_by_thread`.
    """
    actors = ActorPool(
        RowGroupReader,
        reader.split,
        reader.shard_paths,
        reader.cache,
        count=config.readers,
        cpus=config.reader_cpus,
        purpose="data readers",
    )
    with contextlib.closing(actors):
        parts = ordered_prefetch(
            lambda part: actors.submit("read_all", part), _parts(read_tasks), reads_ahead(config), stop
        )
        for tables in parts:
            yield from tables


def reads_ahead(config: LoaderConfig) -> int:
    """Return the number of reads in progress, in addition to the one that is waited for."""
    return max(MIN_AHEAD, 2 * config.readers)


def _parts(read_tasks: Iterable[ReadTask]) -> Iterator[list[ReadTask]]:
    """Yield batches of tasks that justify a call of an actor, which takes some milliseconds in Ray."""
    part: list[ReadTask] = []
    for task in read_tasks:
        part.append(task)
        if sum(len(each.rows) for each in part) >= CALL_ROWS:
            yield part
            part = []
    if part:
        yield part
