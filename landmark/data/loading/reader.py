"""Readers of plan tasks: threads return Arrow tables of compressed images."""

import threading
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import pyarrow as pa

from landmark.data.cache.split_cache import SplitCache
from landmark.data.dataset import ShardEntry
from landmark.data.loading.plan import ReadTask
from landmark.data.loading.prefetch import ByteWindow, ordered_prefetch
from landmark.data.loading.shard_file import ShardFile
from landmark.data.threads import DaemonPool
from landmark.storage import Location, NotFound

THREADS = 32
"""Maximum concurrent requests of a process that reads a split."""
START_BYTES = 16 << 20
MAX_BYTES = 256 << 20
"""Bytes read ahead by a process: at first, and at most."""
REQUESTS = (2, 2 * THREADS)
"""Minimum and maximum of requests that are in progress or whose rows wait, regardless of their bytes."""
REQUEST_BYTES = 8 << 20
"""Neighboring row groups up to this size share a request."""


class RowGroupReader:
    """Reads tasks of one split: columns image (large binary), label int32, sample and visit int64, fault string.

    fault is null for readable rows. A task of a missing or corrupt shard is returned with its planned rows, without
    images. fault then contains the shard and the error, and the caller decides what to do. Thread-safe.
    """

    def __init__(self, split: Location, shards: list[ShardEntry], cache: SplitCache | None = None) -> None:
        """split: the location that the paths of `shards` are relative to. cache: the node's cache of the row groups."""
        self.split = split
        self.shards = shards
        self.cache = cache
        self._files = [ShardFile(split / shard.path) for shard in shards]

    def read(self, task: ReadTask) -> pa.Table:
        """Return the task's rows. Raises UserError if the storage fails."""
        return self.read_neighbors([task])[0]

    def read_all(self, read_tasks: list[ReadTask]) -> list[pa.Table]:
        """Return the rows of several tasks, which are read concurrently. Raises UserError if the storage fails."""
        with DaemonPool(THREADS, "landmark-read") as pool:
            parts = [pool.submit(self.read_neighbors, part) for part in self.requests(read_tasks)]
            return [table for part in parts for table in part.result()]

    def requests(self, read_tasks: Iterable[ReadTask]) -> Iterator[list[ReadTask]]:
        """Yield the tasks in order, in lists of neighboring row groups that one request reads. Tasks are taken from
        `read_tasks` on demand."""
        part: list[ReadTask] = []
        for task in read_tasks:
            if part and not self._joins(part, task):
                yield part
                part = []
            part.append(task)
        if part:
            yield part

    def _joins(self, part: list[ReadTask], task: ReadTask) -> bool:
        if self.cache is not None:  # each row group may or may not be in it
            return False
        last = part[-1]
        neighbors = task.shard == last.shard and task.row_group == last.row_group + 1
        return neighbors and (len(part) + 1) * self._group_bytes(task) <= REQUEST_BYTES

    def _group_bytes(self, task: ReadTask) -> int:
        shard = self.shards[task.shard]
        return shard.bytes // max(1, shard.row_groups)

    def request_bytes(self, read_tasks: list[ReadTask]) -> int:
        """Return the approximate size of a request of `requests`, bytes."""
        return sum(map(self._group_bytes, read_tasks))

    def read_neighbors(self, read_tasks: list[ReadTask]) -> list[pa.Table]:
        """Return the rows of tasks of neighboring row groups, which are read with one request."""
        file = self._files[read_tasks[0].shard]
        try:
            tables = self._tables(file, read_tasks)
        except NotFound:
            return [_lost(task, f"{file.location}: missing") for task in read_tasks]
        except pa.ArrowInvalid as error:
            if len(read_tasks) > 1:  # the others may be readable
                return [self.read(task) for task in read_tasks]
            return [_lost(read_tasks[0], f"{file.location}: corrupt ({' '.join(str(error).split())})")]
        return [_rows(task, table, file.location) for task, table in zip(read_tasks, tables, strict=True)]

    def _tables(self, file: ShardFile, read_tasks: list[ReadTask]) -> list[pa.Table]:
        """Return the complete row groups of neighboring tasks, from the cache if there is one."""
        if self.cache is None:
            return file.read([task.row_group for task in read_tasks])

        def cached(cache: SplitCache, task: ReadTask) -> pa.Table:
            return cache.read(task.shard, task.row_group, lambda: file.read([task.row_group])[0], lambda: file.size)

        return [cached(self.cache, task) for task in read_tasks]


def _rows(task: ReadTask, table: pa.Table, shard: Location) -> pa.Table:
    """Return the planned rows of a row group."""
    if task.rows[-1] >= len(table):
        return _lost(task, f"{shard}: corrupt (row group {task.row_group} has {len(table)} rows, fewer than planned)")
    if not np.array_equal(task.rows, np.arange(len(table))):
        table = table.take(task.rows)
    return pa.table(
        {
            "image": table["image"].cast(pa.large_binary()),
            "label": table["label"],
            "sample": pa.array(task.rows + task.first_sample),
            "visit": pa.array(task.visits),
            "fault": pa.nulls(len(table), pa.string()),
        }
    )


def _lost(task: ReadTask, fault: str) -> pa.Table:
    """Return the rows of a task whose images cannot be read."""
    rows = len(task.rows)
    return pa.table(
        {
            "image": pa.nulls(rows, pa.large_binary()),
            "label": pa.nulls(rows, pa.int32()),
            "sample": pa.array(task.rows + task.first_sample),
            "visit": pa.array(task.visits),
            "fault": pa.array([fault] * rows, pa.string()),
        }
    )


def read_by_thread(
    reader: RowGroupReader, read_tasks: Iterable[ReadTask], stop: threading.Event | None = None
) -> Generator[pa.Table, None, None]:
    """Yield the tasks' tables in order, reading ahead in threads of this process. `close` it if it is not exhausted.

    The number of requests in progress adapts to the storage. stop: an event. If it is set, Stopped is raised instead of
    waiting for a read.
    """
    window = ByteWindow(reader.request_bytes, start=START_BYTES, most=MAX_BYTES, calls=REQUESTS)
    with DaemonPool(THREADS, "landmark-read") as pool:
        requests = reader.requests(read_tasks)
        for tables in ordered_prefetch(lambda part: pool.submit(reader.read_neighbors, part), requests, window, stop):
            yield from tables
