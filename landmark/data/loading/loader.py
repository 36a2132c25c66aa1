"""The loader of decoded batches of a split for one rank. It prefetches across epochs without draining in between."""

import collections
import contextlib
import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from landmark.config import AugmentConfig, LoaderConfig, SamplingConfig, UserError
from landmark.data.arrow_binary import values
from landmark.data.cache.split_cache import SplitCache
from landmark.data.dataset import PackedDataset
from landmark.data.loading.bottleneck import StageClock, StageSeconds
from landmark.data.loading.damage import DamagePolicy, count_lost, replacement_rows
from landmark.data.loading.decoders import Decoded, DecodedColumn, ThreadDecoder, decode_column
from landmark.data.loading.jpeg import decode_batch, flips
from landmark.data.loading.plan import RankPlan
from landmark.data.loading.prefetch import Pending, Stopped, ordered_prefetch
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.rank_plans import RankPlans, Shape, fixed_shape
from landmark.data.loading.reader import RowGroupReader, read_by_thread
from landmark.data.loading.sampling import EpochRows
from landmark.data.loading.schedule import ReadSchedule, rebatch, shuffle_windows

if TYPE_CHECKING:
    from landmark.data.loading.streams import Shard, StreamReader

CLOSE_S = 10.0
"""Maximum time that `close` waits for threads to end, seconds."""
SPARE_READS = 64
"""Row groups, spread over the split, that are searched for a replacement of a lost image."""


@dataclass(kw_only=True, frozen=True)
class Batch:
    """One step's images on one rank."""

    images: np.ndarray
    """uint8 (n, size, size, 3), RGB."""
    labels: np.ndarray
    """int64 (n,)."""
    samples: np.ndarray
    """Sample numbers, int64 (n,)."""
    visits: np.ndarray
    """Number of each image among all images of the epoch, int64 (n,). It is the sample number, unless images repeat. A
    replacement has the number of the lost image."""
    flip: np.ndarray
    """Images to flip horizontally, bool (n,)."""
    weight: float
    """This rank's fraction of the step's images, times the number of ranks. It weights the rank's mean loss in the mean
    over ranks."""
    epoch: int
    """Number of the epoch, from 1."""
    lost: int = 0
    """Number of images of the step that could not be read or decoded. In training, other images replace them."""


class Loader:
    """Batches of one split for one rank.

    Call `epoch(n)` for first, first + 1, …: decoding prefetches across the end of an epoch. With `augment`, the split
    is shuffled and its crops are random. Otherwise, rows are in their order with the center crop of evaluation. `close`
    stops the threads.

    position: the position at which the first of `epochs` resumes. With the same number of ranks, the batches are those
    of an uninterrupted epoch. Otherwise, the remaining rows are redistributed. shard: this rank's Ray Data stream, if
    Ray Train passed one. Without one, config.stream "ray" makes the same stream in this process.

    With config.corrupt "skip", images of missing or corrupt shards and images that cannot be decoded are lost. In
    training, rows that were read before, or others of the batch, replace them, so that all ranks have equally many
    steps. In evaluation, batches are smaller. `lost` counts the lost images of the batches that were yielded, by epoch.
    `tell` receives one line per shard.
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
        sampling: SamplingConfig | None = None,
        epochs: range = range(1, 2),
        shape: Shape | None = None,
        position: EpochProgress | None = None,
        shard: "Shard | None" = None,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self.split = split
        self.config = config
        self.seed = seed
        self.augment = augment
        self.rows = EpochRows(dataset, split, sampling or SamplingConfig(), seed)
        self.plans = RankPlans(
            rows=self.rows,
            rank=rank,
            world_size=world_size,
            seed=seed,
            training=augment is not None,
            epochs=epochs,
            shape=shape or fixed_shape(config),
            shuffle_row_groups=config.shuffle_row_groups,
            position=position,
        )
        self.shard = shard
        self.label_map = dataset.label_map
        self.sample_labels = dataset.sample_labels(split) if dataset.relabelled else None
        cache = SplitCache.of(dataset, split, config, augment)
        self._make_reader = functools.partial(RowGroupReader, dataset.location, dataset.split(split).shards, cache)
        self.reader = self._make_reader()
        self.lost: collections.Counter[int] = collections.Counter()
        self._losses = DamagePolicy(dataset.location / split, config.corrupt, self._spares, tell)
        self._next = epochs.start
        self._epoch = epochs.start
        """Epoch whose rows the stream returns, if there is one."""
        self._queue: queue.Queue[tuple[int, Batch | int | BaseException | None]] = queue.Queue(config.prefetch_batches)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._clock = StageClock()
        self._stream: StreamReader | None = None

    def plan(self, epoch: int) -> RankPlan:
        """Return this rank's plan of an epoch, from the last point at which the epoch was divided among the ranks."""
        return self.plans.plan(epoch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch. Request epochs in order, and consume each completely."""
        if epoch != self._next:
            raise ValueError(f"epoch {epoch} was requested; expected {self._next}")
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
            self.lost[epoch] += item if isinstance(item, int) else item.lost
            if isinstance(item, Batch):
                yield item

    def close(self) -> None:
        """Stop the threads, and drop queued batches.

        It does not wait for a read in progress. After CLOSE_S, the remaining threads end with their read or with the
        process.
        """
        self._stop.set()
        ends = time.monotonic() + CLOSE_S
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                if time.monotonic() > ends:
                    return

    def stage_seconds(self) -> StageSeconds:
        """Return how long this loader has waited for each stage."""
        reading_s, decoding_s = self._clock.reading_s, self._clock.decoding_s
        if self._stream is None:
            return StageSeconds(storage=reading_s, decoding=decoding_s)
        reader_s, decoder_s = self._stream.busy_seconds()
        storage_s = min(reading_s, reader_s)
        remote_s = min(reading_s - storage_s, decoder_s)
        transfer_s = reading_s - storage_s - remote_s
        return StageSeconds(storage=storage_s, decoding=decoding_s + remote_s, transfer=transfer_s)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _put(self, epoch: int, item: Batch | int | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put((epoch, item), timeout=0.2)
            except queue.Full:
                continue
            return

    def _produce(self) -> None:
        stop = self._stop
        try:
            # Closed here in any case, instead of when the garbage collector runs.
            with (
                contextlib.closing(self._decoder()) as decoder,
                contextlib.closing(self._jobs()) as jobs,
                contextlib.closing(
                    ordered_prefetch(
                        lambda job: _Decoding(self, decoder, job), self._clock.reading(jobs), decoder.ahead, stop
                    )
                ) as done,
            ):
                for job, batch in self._clock.decoding(done):
                    self._put(job.epoch, batch)
                    if self._stop.is_set():
                        return
        except Stopped:
            return
        except Exception as error:  # the consumer raises it
            self._put(self._next, error)

    def _decoder(self) -> "ThreadDecoder | DecodedColumn":
        if self.config.decode == "data":
            return DecodedColumn()
        return ThreadDecoder(self.config, self.augment, self.seed, largest=self.plans.largest())

    def _jobs(self) -> Generator["_DecodeRequest", None, None]:
        """Yield the batches to decode of all epochs, and a marker after each epoch."""
        with contextlib.closing(self._by_stream() if self.config.stream == "ray" else self._by_thread()) as epochs:
            for schedule, tables in epochs:
                yield from self._jobs_of(schedule, tables)
                yield _DecodeRequest(epoch=schedule.epoch)

    def _by_thread(self) -> Generator[tuple[ReadSchedule, Iterator[pa.Table]], None, None]:
        """Yield each epoch with its rows, which threads of this process read."""
        schedules: dict[int, ReadSchedule] = {}

        def schedule_of(epoch: int) -> ReadSchedule:
            if epoch not in schedules:
                schedules[epoch] = self.plans.schedule(epoch)
            return schedules[epoch]

        read_tasks = (task for epoch in self.plans.epochs for task in schedule_of(epoch).read_tasks)
        with contextlib.closing(read_by_thread(self.reader, read_tasks, self._stop)) as tables:
            for epoch in self.plans.epochs:
                schedule = schedule_of(epoch)
                checked = self._checked(itertools.islice(tables, len(schedule.read_tasks)))
                yield schedule, shuffle_windows(checked, self.plans.windows(schedule))
                del schedules[epoch]

    def _by_stream(self) -> Generator[tuple[ReadSchedule, Iterator[pa.Table]], None, None]:
        """Yield each epoch with its rows, which Ray Data reads."""
        from landmark.data.loading.streams import StreamReader, local_shard

        shard = self.shard or local_shard(self.plans, self._make_reader, self.config, self.augment, self.split)
        with contextlib.closing(StreamReader(shard, self.plans, self.config, self._stop)) as stream:
            self._stream = stream
            for epoch in self.plans.epochs:
                self._epoch = epoch
                self._losses.spare = None  # its pixels may have another size
                schedule = self.plans.schedule(epoch)
                tables = self._checked(stream.tables(schedule))
                yield schedule, tables if stream.decoded else shuffle_windows(tables, self.plans.windows(schedule))

    def _checked(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Report lost rows, and in training replace them."""
        checked = self._losses.checked(tables)
        return checked if self.augment is None else self._losses.replaced(checked)

    def _jobs_of(self, schedule: "ReadSchedule", tables: Iterable[pa.Table]) -> Iterator["_DecodeRequest"]:
        size, _ = self.plans.shape(schedule.epoch)
        for whole, weight in zip(rebatch(tables, schedule.batch_rows), schedule.weights, strict=True):
            table = whole if self.augment is not None else whole.filter(pc.is_null(whole["fault"]))
            unread = len(whole) - len(table)
            yield _DecodeRequest(epoch=schedule.epoch, table=table, unread=unread, size=size, weight=float(weight))

    def _spares(self) -> Iterator[pa.Table]:
        """Read row groups spread over the split, and yield the readable ones."""
        groups = self.rows.groups
        for index in np.unique(np.linspace(0, len(groups.rows) - 1, SPARE_READS).astype(np.int64)):
            table = self.reader.read(groups.task(int(index), 0, int(groups.rows[index])))
            if table["fault"].null_count == len(table):
                if self.config.decode == "data":  # like the rows of the stream
                    size, _ = self.plans.shape(self._epoch)
                    table = decode_column(table, self.augment, self.seed, self._epoch, size, self.config.crop_pct)
                yield table

    def batch(self, job: "_DecodeRequest", table: pa.Table, pixels: np.ndarray, faults: dict[int, str]) -> Batch | int:
        """Assemble a decoded batch. If no image of it is left, return the number of lost images."""
        lost = job.unread + count_lost(table, faults)
        if faults:
            table, pixels = self._without(faults, job, table, pixels)
        if not len(table):
            return lost
        visits = table["visit"].to_numpy()
        samples = table["sample"].to_numpy()
        labels = table["label"].to_numpy().astype(np.int64)
        if self.sample_labels is not None:
            labels = self.sample_labels[samples]
        elif self.label_map is not None:
            labels = self.label_map[labels]
        mirrored = self.augment is not None and self.augment.flip
        return Batch(
            images=pixels,
            labels=labels,
            samples=samples,
            visits=visits,
            flip=flips(self.seed, job.epoch, visits) if mirrored else np.zeros(len(visits), dtype=bool),
            weight=job.weight,
            epoch=job.epoch,
            lost=lost,
        )

    def _without(
        self, faults: dict[int, str], job: "_DecodeRequest", table: pa.Table, pixels: np.ndarray
    ) -> tuple[pa.Table, np.ndarray]:
        """Return a batch without images that cannot be decoded. In training, other images replace them.

        Raises UserError if such images are not skipped, or if no other image can be decoded.
        """
        line = self._losses.report_undecoded(table, faults)
        table = table.drop_columns(["image"])
        bad = np.array(list(faults))
        good = np.delete(np.arange(len(table)), bad)
        if self.augment is None:
            return table.take(good), pixels[good]
        if len(good):
            rows = np.arange(len(table))
            rows[bad] = good[np.arange(len(bad)) % len(good)]
            return replacement_rows(table, table.take(rows)), pixels[rows]
        for spare in self._losses.candidates():
            others, undecoded = self._decoded(spare, job)
            good = np.delete(np.arange(len(spare)), list(undecoded))
            if len(good):
                rows = good[np.arange(len(table)) % len(good)]
                return replacement_rows(table, spare.take(rows)), others[rows]
        raise UserError(
            f"{line}; none of the images tried as a replacement can be decoded either; prepare the dataset again"
        )

    def _decoded(self, spare: pa.Table, job: "_DecodeRequest") -> Decoded:
        if self.config.decode == "data":
            return DecodedColumn().submit(spare, job.epoch, job.size).result()
        visits = spare["visit"].to_numpy()
        return decode_batch(
            values(spare["image"]),
            visits,
            job.size,
            augment=self.augment,
            crop_pct=self.config.crop_pct,
            seed=self.seed,
            epoch=job.epoch,
        )


@dataclass(kw_only=True, frozen=True)
class _DecodeRequest:
    """A batch to decode, or the end of an epoch if it has no table."""

    epoch: int
    table: pa.Table | None = None
    unread: int = 0
    """Evaluation: number of rows that could not be read. `table` does not contain them."""
    size: int = 0
    weight: float = 0.0


class _Decoding:
    """A batch that is being decoded. Its result is the job and the batch."""

    def __init__(self, loader: Loader, decoder: ThreadDecoder | DecodedColumn, job: _DecodeRequest) -> None:
        self.loader = loader
        self.job = job
        self.call: Pending[Decoded] | None = None
        if job.table is not None and len(job.table):
            self.call = decoder.submit(job.table, job.epoch, job.size)

    def result(self, timeout: float | None = None) -> tuple[_DecodeRequest, Batch | int | None]:
        if self.job.table is None:
            return self.job, None
        if self.call is None:
            return self.job, self.job.unread
        return self.job, self.loader.batch(self.job, self.job.table, *self.call.result(timeout))

    def done(self) -> bool:
        return self.call is None or self.call.done()

    def cancel(self) -> None:
        if self.call is not None:
            self.call.cancel()
