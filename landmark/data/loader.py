"""The loader: one rank's decoded batches of a split, pass after pass, without draining in between."""

import collections
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import AugmentConfig, LoaderConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.decode import decode_batch, flips
from landmark.data.plan import RankPlan, RowGroups, plan_evaluation, plan_training_epoch
from landmark.data.randomness import generator
from landmark.data.reader import UnitReader, read_by_ray, read_by_thread

MEND = "put the shard back or prepare the dataset again; `damaged: skip` goes on without its images"


@dataclass(kw_only=True, frozen=True)
class Batch:
    """One step's images on one rank."""

    images: np.ndarray
    """uint8 (n, size, size, 3), RGB."""
    labels: np.ndarray
    """int64 (n,)."""
    samples: np.ndarray
    """Sample numbers, int64 (n,)."""
    flip: np.ndarray
    """Images to mirror left to right, bool (n,)."""
    share: float
    """This rank's share of the step's images, times the ranks: what its mean loss counts in the ranks' mean."""


class Loader:
    """Batches of one split for one rank.

    `epoch(n)` must be called for first, first + 1, …: decoding runs ahead, over the end of an epoch
    into the next one. With `augment` the split is shuffled and its crops are random; without, rows come
    in their own order under evaluation's centre crop. `close` ends the threads.

    With config.damaged "skip", images of damaged shards are lost: in training the rows read before them are
    shown once more, so that the ranks' steps stay equal; in evaluation batches are smaller. `lost` counts them by
    epoch, complete when the epoch has ended, and `tell` gets one line a shard.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        split: str,
        config: LoaderConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        augment: AugmentConfig | None = None,
        epochs: range = range(1, 2),
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self.config = config
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.augment = augment
        self.epochs = epochs
        self.groups = RowGroups.of(dataset, split)
        self.label_map = dataset.label_map
        paths = [shard.path for shard in dataset.split(split).shards]
        self.reader = UnitReader(dataset.location, paths)
        self.lost: collections.Counter[int] = collections.Counter()
        self._losses = _Losses(config.damaged, tell)
        self._next = epochs.start
        self._queue: queue.Queue[tuple[int, Batch | BaseException | None]] = queue.Queue(config.prefetch_batches)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def plan(self, epoch: int) -> RankPlan:
        """Return what this rank reads in an epoch."""
        if self.augment is None:
            return plan_evaluation(
                self.groups, rank=self.rank, world_size=self.world_size, batch_size=self.config.batch_size
            )
        return plan_training_epoch(
            self.groups,
            rank=self.rank,
            world_size=self.world_size,
            batch_size=self.config.batch_size,
            seed=self.seed,
            epoch=epoch,
        )

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; epochs are asked for in order, each to its end."""
        if epoch != self._next:
            raise ValueError(f"epoch {epoch} asked for; expected {self._next}")
        self._next += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._produce, name="landmark-loader", daemon=True)
            self._thread.start()
        while True:
            number, item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            assert number == epoch
            yield item

    def close(self) -> None:
        """End the threads; batches that wait are dropped."""
        self._stop.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _put(self, epoch: int, item: Batch | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put((epoch, item), timeout=0.2)
            except queue.Full:
                continue
            return

    def _produce(self) -> None:
        threads = self.config.decode_threads or available_cpus()
        with ThreadPoolExecutor(threads, thread_name_prefix="landmark-decode") as pool:
            try:
                # Closed here and now, whatever happens: left to the garbage collector, the reader's threads would be
                # waited for in a thread that they may wait for.
                with contextlib.closing(self._passes()) as passes:
                    for epoch, plan, tables in passes:
                        for batch in self._decode_ahead(pool, epoch, plan, tables, threads):
                            self._put(epoch, batch)
                            if self._stop.is_set():
                                return
                        self._put(epoch, None)
            except Exception as error:  # handed to the consumer, which raises it
                self._put(self._next, error)

    def _passes(self) -> Generator[tuple[int, RankPlan, Iterable[pa.Table]], None, None]:
        """Yield each epoch's plan and tables."""
        if self.config.stream != "ray":
            for epoch in self.epochs:
                plan = self.plan(epoch)
                with contextlib.closing(read_by_thread(self.reader, plan.units)) as tables:
                    yield epoch, plan, tables
            return
        planned = ((epoch, self.plan(epoch).units) for epoch in self.epochs)
        with contextlib.closing(read_by_ray(self.reader, planned, self.config)) as blocks:
            stream = _EpochSorter(blocks)
            for epoch in self.epochs:
                plan = self.plan(epoch)
                yield epoch, plan, stream.tables(epoch, int(plan.batch_rows.sum()))

    def _decode_ahead(
        self, pool: ThreadPoolExecutor, epoch: int, plan: RankPlan, tables: Iterable[pa.Table], ahead: int
    ) -> Iterator[Batch]:
        pending: collections.deque[Future[Batch]] = collections.deque()
        window = self.config.shuffle_row_groups if self.augment is not None else 1
        counted = self._losses.counted(tables, self.lost, epoch)
        if self.augment is not None:
            counted = self._losses.replaced(counted)
        rows = _mixed(counted, window, self.seed if self.augment is not None else None, epoch)
        shares = plan.batch_rows * self.world_size / np.maximum(plan.global_rows, 1)
        for whole, share in zip(_rebatched(rows, plan.batch_rows), shares, strict=True):
            table = whole.filter(pc.is_null(whole["fault"])) if self.lost[epoch] else whole
            if not len(table):
                continue
            pending.append(pool.submit(self._decode, table, epoch, float(share)))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _decode(self, table: pa.Table, epoch: int, share: float) -> Batch:
        samples = table["sample"].to_numpy()
        images = [memoryview(value.as_buffer()).cast("B") for value in table["image"]]
        size = self.config.image_size
        try:
            pixels = decode_batch(images, samples, size, augment=self.augment, seed=self.seed, epoch=epoch)
        except ValueError as error:
            raise UserError(f"{self.reader.split}: {error}; check the dataset, or prepare it again") from None
        labels = table["label"].to_numpy().astype(np.int64)
        mirrored = self.augment is not None and self.augment.flip
        return Batch(
            images=pixels,
            labels=labels if self.label_map is None else self.label_map[labels],
            samples=samples,
            flip=flips(self.seed, epoch, samples) if mirrored else np.zeros(len(samples), dtype=bool),
            share=share,
        )


class _Losses:
    """Counts the rows of units that could not be read, tells of them, and finds others for their places."""

    def __init__(self, damaged: Literal["stop", "skip"], tell: Callable[[str], object] | None) -> None:
        self.damaged = damaged
        self.tell = tell
        self.told: set[str] = set()
        self.spare: pa.Table | None = None

    def counted(self, tables: Iterable[pa.Table], lost: collections.Counter[int], epoch: int) -> Iterator[pa.Table]:
        """Yield the tables, adding their lost rows to lost[epoch] and telling of each shard once.

        Raises UserError for the first lost row, unless these are skipped.
        """
        for table in tables:
            faults = table["fault"].drop_null()
            lost[epoch] += len(faults)
            for fault in pc.unique(faults).to_pylist():
                if self.damaged == "stop":
                    raise UserError(f"{fault}; {MEND}")
                shard = fault.split(": ")[0]
                if self.tell is not None and shard not in self.told:
                    self.tell(f"warning: {fault}; its images are skipped and counted as lost_images")
                self.told.add(shard)
            yield table

    def replaced(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield as many rows, with whole ones for the lost: those read just before, else those that come next.

        Raises UserError where there is no whole row.
        """
        waiting = 0
        fault = ""
        for table in tables:
            whole = table.filter(pc.is_null(table["fault"])) if table["fault"].null_count < len(table) else table
            waiting += len(table) - len(whole)
            if len(whole):
                self.spare = whole
                yield whole
            elif self.spare is None:
                fault = table["fault"][0].as_py()
            if waiting and self.spare is not None:
                yield self.spare.take(np.arange(waiting) % len(self.spare))
                waiting = 0
        if waiting:
            raise UserError(f"{fault}; no other image could be read in its place, prepare the dataset again")


class _EpochSorter:
    """Hands out the tables of a Ray stream epoch by epoch, keeping those of a later epoch for it."""

    def __init__(self, stream: Iterator[tuple[int, pa.Table]]) -> None:
        self.stream = stream
        self.waiting: dict[int, list[pa.Table]] = collections.defaultdict(list)

    def tables(self, epoch: int, rows: int) -> Iterator[pa.Table]:
        """Yield the epoch's tables until `rows` rows have come."""
        for table in self.waiting.pop(epoch, []):
            rows -= len(table)
            yield table
        while rows > 0:
            number, table = next(self.stream)
            if number != epoch:
                self.waiting[number].append(table)
                continue
            rows -= len(table)
            yield table


def available_cpus() -> int:
    """Return the CPUs this process may use: OMP_NUM_THREADS (Ray sets it to a worker's CPUs), else its affinity."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) > 0 else len(os.sched_getaffinity(0))


def _mixed(tables: Iterable[pa.Table], window: int, seed: int | None, epoch: int) -> Iterator[pa.Table]:
    """Yield the rows of every `window` tables mixed with each other; as they are where seed is None."""
    gathered: list[pa.Table] = []
    number = 0
    for table in tables:
        gathered.append(table)
        if len(gathered) == window:
            yield _permuted(gathered, seed, epoch, number)
            gathered, number = [], number + 1
    if gathered:
        yield _permuted(gathered, seed, epoch, number)


def _permuted(tables: list[pa.Table], seed: int | None, epoch: int, number: int) -> pa.Table:
    table = pa.concat_tables(tables).combine_chunks()
    if seed is None:
        return table
    return table.take(generator(seed, epoch, 1 + number).permutation(len(table)))


def _rebatched(tables: Iterable[pa.Table], sizes: np.ndarray) -> Iterator[pa.Table]:
    """Yield tables of the given sizes out of tables of any size; raises ValueError if rows are missing."""
    source = iter(tables)
    rest: list[pa.Table] = []
    have = 0
    for size in sizes:
        while have < size:
            table = next(source, None)
            if table is None:
                raise ValueError(f"the stream ended {size - have} rows short of its plan")
            rest.append(table)
            have += len(table)
        joined = pa.concat_tables(rest)
        yield joined.slice(0, int(size))
        have -= int(size)
        rest = [joined.slice(int(size))] if have else []
