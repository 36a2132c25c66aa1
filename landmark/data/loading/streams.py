"""Streams: what a rank reads in all epochs as one Ray Data dataset, and its consumer, which checks the plan.

A source of a few thousand part numbers feeds a pool of long-lived readers. Each reader derives the rows of a part from
the rank's plans. If images are decoded outside the training process, an autoscaling pool of decoders follows.
"""

import contextlib
import functools
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.experimental import internal_kv

from landmark.config import AugmentConfig, LoaderConfig, UserError
from landmark.data.loading.decoders import decode_column
from landmark.data.loading.prefetch import Stopped, ordered_prefetch
from landmark.data.loading.rank_plans import MAX_PARTS, RankPlans
from landmark.data.loading.reader import RowGroupReader
from landmark.data.loading.schedule import ReadSchedule, Window
from landmark.data.loading.stream_control import control
from landmark.data.threads import DaemonPool
from landmark.runtime import own_error

BLOCK_BYTES = 8 << 20
"""Size of a block in the object store, about."""
STORE_BYTES = 192 << 20
"""Maximum memory of a rank's training stream in the object store, without decoders."""
CALL_ROWS = 1024
"""Minimum rows of one call of RowGroupReader, if the part has that many. The first call is a quarter."""
CALLS_AHEAD = 1
"""Calls of RowGroupReader in progress, in addition to the one that is waited for."""
PREFETCH_BLOCKS = 2
"""Blocks that the training process fetches from other nodes in advance, in addition to the one in use."""
RETRIES = 3
"""Maximum retries of a part or a block after its actor died. One that kills its actor each time ends the run."""
PATIENCE_S = 900
"""Timeout of a block, seconds. It allows the cluster to start a node for a reader."""
STOP_CHECK_S = 0.1
"""Interval for checking whether the stream ends, seconds."""
CLOSE_S = 5.0
"""Maximum time that `close` waits for the stream to end, seconds."""
NODE_LABEL = "ray.io/node-id"
"""Ray's label of each node."""
HINT = "check that all nodes read the same dataset with the same version of landmark"


@dataclass(frozen=True)
class Shard:
    """A rank's stream of one split."""

    name: str
    """Name of the dataset, which Ray's dashboard shows."""
    iterator: ray.data.DataIterator


class PartSource(Datasource):
    """Source of the numbers of all parts of a rank's epochs."""

    def __init__(self, epochs: range, parts: int) -> None:
        super().__init__()
        self.epochs = epochs
        self.parts = parts

    def get_name(self) -> str:
        """Return the name that Ray's dashboard shows."""
        return "Plan"

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: unknown."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return a task per part, in order. If there are more than MAX_PARTS epochs, a task has several of them."""
        together = -(-len(self.epochs) // MAX_PARTS)
        metadata = BlockMetadata(num_rows=together, size_bytes=16 * together, exec_stats=None, input_files=None)
        return [
            ReadTask(functools.partial(_part_block, self.epochs[at : at + together], part), metadata)
            for at in range(0, len(self.epochs), together)
            for part in range(self.parts)
        ]


def _part_block(epochs: range, part: int) -> Iterator[pa.Table]:
    yield pa.table({"epoch": list(epochs), "part": [part] * len(epochs)})


class PartReader:
    """Reads parts of a rank's epochs in a Ray Data actor.

    decoded: whether decoders follow. The rows are then in the order in which training uses them, and have the columns
    epoch and size. Otherwise, they are in the order of the reads, because the training process shuffles compressed
    images without copying them.
    stream_id: identifies this stream among all streams of this name. Their attempts at a part are counted separately.
    """

    def __init__(
        self, name: str, plans: RankPlans, make_reader: Callable[[], RowGroupReader], decoded: bool, stream_id: str
    ) -> None:
        self.name = name
        self.stream_id = stream_id
        self.plans = plans
        self.reader = make_reader()
        self.decoded = decoded
        self._schedule: ReadSchedule | None = None

    def __call__(self, parts: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows of parts: image, label, sample, visit, fault, as RowGroupReader returns them."""
        for epoch, part in zip(parts["epoch"].to_pylist(), parts["part"].to_pylist(), strict=True):
            with _counted_attempt(self.stream_id, f"{self.name} epoch {epoch} part {part}"):
                yield from (self._with_size(table, epoch) for table in self.part(epoch, part))

    def part(self, epoch: int, part: int) -> Iterator[pa.Table]:
        """Yield the rows of one part."""
        if self._schedule is None or self._schedule.epoch != epoch:
            self._schedule = self.plans.schedule(epoch)
        calls = _calls(self.plans.windows(self._schedule, part, self.plans.parts))
        with (
            DaemonPool(1 + CALLS_AHEAD, "landmark-read") as pool,
            contextlib.closing(
                ordered_prefetch(lambda call: pool.submit(self._read, call), calls, CALLS_AHEAD)
            ) as tables,
        ):
            for found in tables:
                yield from found

    def _read(self, windows: list[Window]) -> list[pa.Table]:
        """Return the rows of windows."""
        tables = self.reader.read_all([task for window in windows for task in window.read_tasks])
        if not self.decoded:
            return tables
        rest = iter(tables)
        return [_arranged(pa.concat_tables(islice(rest, len(window.read_tasks))), window) for window in windows]

    def _with_size(self, table: pa.Table, epoch: int) -> pa.Table:
        if not self.decoded:
            return table
        size, _ = self.plans.shape(epoch)
        for name, value in (("epoch", epoch), ("size", size)):
            table = table.append_column(name, pa.array(np.full(len(table), value, dtype=np.int32)))
        return table


@contextlib.contextmanager
def _counted_attempt(stream_id: str, part: str) -> Iterator[None]:
    """Count the attempts at a part in Ray's key-value store. Raises UserError if all of them killed their actor.

    Ray retries the calls of this actor without limit: it has no other setting for an actor that reads a source.
    """
    key = f"landmark {stream_id} {part}"
    attempt = 1 + int(internal_kv._internal_kv_get(key) or b"0")
    if attempt > 1 + RETRIES:
        raise UserError(
            f"{part}: {attempt - 1} readers died while reading it; check the memory of the nodes, then run the same command "
            "with --resume"
        )
    internal_kv._internal_kv_put(key, str(attempt))
    yield
    internal_kv._internal_kv_del(key)


def _calls(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Yield windows in groups of CALL_ROWS rows or more. The first group is smaller: training may wait for it."""
    call: list[Window] = []
    rows = CALL_ROWS // 4
    for window in windows:
        call.append(window)
        if sum(window.rows for window in call) >= rows:
            yield call
            call, rows = [], CALL_ROWS
    if call:
        yield call


def _arranged(table: pa.Table, window: Window) -> pa.Table:
    """Return a window's remaining rows in their order, in memory that contains nothing else.

    Arrow takes rows of one chunk four times as fast as rows of several chunks.
    """
    return (table if window.order is None else table.combine_chunks().take(window.order)).slice(window.skipped)


class PartDecoder:
    """Decodes blocks in a Ray Data actor, see `decode_column`."""

    def __init__(self, augment: AugmentConfig | None, seed: int, crop_pct: float) -> None:
        self.augment = augment
        self.seed = seed
        self.crop_pct = crop_pct

    def __call__(self, table: pa.Table) -> pa.Table:
        """Decode a block with the columns image, visit, epoch and size. All its rows have the same epoch and size."""
        if not len(table):
            return table
        epoch, size = table["epoch"][0].as_py(), table["size"][0].as_py()
        table = table.drop_columns(["epoch", "size"])
        return decode_column(table, self.augment, self.seed, epoch, size, self.crop_pct)


def _preference(node_id: str | None) -> dict[str, Any]:
    """Return Ray's options for an actor that runs on a node if that has free CPUs, else on any node."""
    if node_id is None:
        return {}
    return {"label_selector": {NODE_LABEL: node_id}, "fallback_strategy": [{"label_selector": {}}]}


def part_dataset(epochs: range, parts: int, name: str, *, cpus: float, node_id: str | None = None) -> ray.data.Dataset:
    """Return the lazy dataset of the numbers of all parts. Ray Data fuses it into the readers of these numbers.

    cpus: CPUs of a reader. node_id: the node that readers prefer, if it has free CPUs.
    """
    dataset = ray.data.read_datasource(
        PartSource(epochs, parts), num_cpus=cpus, override_num_blocks=1, **_preference(node_id)
    )
    dataset.set_name(name)
    return dataset


def rank_dataset(
    plans: RankPlans,
    make_reader: Callable[[], RowGroupReader],
    config: LoaderConfig,
    augment: AugmentConfig | None,
    name: str,
    node_id: str | None = None,
) -> ray.data.Dataset:
    """Return the lazy dataset of a rank's rows over all epochs, in the order of its plans.

    The column image contains the compressed image, or pixels if config.decode is "data". node_id: the node of the
    training process, which readers prefer.
    """
    by_data = config.decode == "data"
    parts = part_dataset(plans.epochs, plans.parts, name, cpus=config.reader_cpus, node_id=node_id)
    dataset = parts.map_batches(
        PartReader,
        fn_constructor_args=(name, plans, make_reader, by_data, uuid.uuid4().hex),
        batch_size=None,
        batch_format="pyarrow",
        # Actors of Ray Data may start with the second of two calls. Its blocks would fill the object store, because
        # training takes them after those of the first.
        compute=ray.data.ActorPoolStrategy(size=config.readers, max_tasks_in_flight_per_actor=1),
        num_cpus=config.reader_cpus,
        **_preference(node_id),
    )
    cpus = config.readers * config.reader_cpus
    if by_data:
        threads = max(1, int(config.data_cpus))
        dataset = dataset.map_batches(
            PartDecoder,
            fn_constructor_args=(augment, plans.seed, config.crop_pct),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=config.min_decoders,
                max_size=config.max_decoders,
                max_tasks_in_flight_per_actor=1 + threads,
                max_concurrent_calls_per_actor=threads,
                enable_true_multi_threading=True,
            ),
            num_cpus=config.data_cpus,
            scheduling_strategy="SPREAD",
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        cpus += config.max_decoders * config.data_cpus
    dataset.set_name(name)
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    control(context, decoders=by_data)
    context.execution_options.preserve_order = True
    # Each stream has its own executor, which would otherwise use the resources of the whole cluster.
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        cpu=cpus, gpu=0, object_store_memory=STORE_BYTES if plans.training else STORE_BYTES // 2
    )
    return dataset


def local_shard(
    plans: RankPlans,
    make_reader: Callable[[], RowGroupReader],
    config: LoaderConfig,
    augment: AugmentConfig | None,
    name: str,
) -> Shard:
    """Return a rank's stream for a process that Ray Train did not start. Requires a connected Ray."""
    node_id = ray.get_runtime_context().get_node_id()
    return Shard(name, rank_dataset(plans, make_reader, config, augment, name, node_id).iterator())


class StreamReader:
    """Consumes a rank's stream, and compares each block with the plan. `close` it.

    stop: an event. If it is set, Stopped is raised instead of waiting for a block.
    """

    def __init__(self, shard: Shard, plans: RankPlans, config: LoaderConfig, stop: threading.Event) -> None:
        self.shard = shard
        self.plans = plans
        self.stop = stop
        self.config = config
        self.decoded = config.decode == "data"
        self.required = f"{config.readers} x {config.reader_cpus:g} CPUs for data readers"
        if self.decoded:
            self.required += f" and {config.min_decoders} x {config.data_cpus:g} CPUs for decoders"
        self._blocks: queue.Queue[pa.Table | BaseException | None] = queue.Queue(PREFETCH_BLOCKS - 1)
        self._rest: pa.Table | None = None
        self._closed = False
        self._executor: StreamingExecutor | None = None
        self._thread = threading.Thread(target=self._fetch, name="landmark-stream", daemon=True)
        self._thread.start()

    def tables(self, schedule: ReadSchedule) -> Iterator[pa.Table]:
        """Yield the rows of an epoch: in their order if they are decoded, else as read. No table has rows of two windows.

        Raises UserError for a block that differs from the plan.
        """
        for window in self.plans.windows(schedule):
            window = window if self.decoded else window.as_read()
            visits, samples, done = window.visits, window.samples, 0
            while done < len(visits):
                rest = self._next() if self._rest is None else self._rest
                table = rest.slice(0, len(visits) - done)
                self._rest = rest.slice(len(table)) if len(rest) > len(table) else None
                self._check(table, schedule.epoch, visits[done:], samples[done:])
                done += len(table)
                yield table

    def _check(self, table: pa.Table, epoch: int, visits: np.ndarray, samples: np.ndarray) -> None:
        for name, expected in (("visit", visits), ("sample", samples)):
            found = table[name].to_numpy()
            if not np.array_equal(found, expected[: len(found)]):
                row = int(np.flatnonzero(found != expected[: len(found)])[0])
                raise UserError(
                    f"{self.shard.name}: a block of epoch {epoch} has {name} {found[row]} where the plan has "
                    f"{expected[row]}; {HINT}"
                )

    def _next(self) -> pa.Table:
        """Return the next block that is not empty."""
        until = time.monotonic() + PATIENCE_S
        while not self.stop.is_set():
            try:
                block = self._blocks.get(timeout=STOP_CHECK_S)
            except queue.Empty:
                if time.monotonic() > until:
                    raise UserError(
                        f"{self.shard.name}: no data for {PATIENCE_S} s; check that the cluster has {self.required} available"
                    ) from None
                continue
            if isinstance(block, BaseException):
                raise own_error(block) or block
            if block is None:
                raise UserError(f"{self.shard.name}: the stream ended before the end of its plan; {HINT}")
            if len(block):
                return block
        raise Stopped

    def _fetch(self) -> None:
        try:
            # `iter_batches` uses four threads and does not join them: they end the process if Ray is shut down.
            bundles, _, _ = self.shard.iterator._to_ref_bundle_iterator()
            for entry in (entry for bundle in bundles for entry in bundle.blocks):
                if not self._put(ray.get(entry.ref)):
                    return
            self._put(None)
        except BaseException as error:  # the consumer raises it
            self._put(error)

    def _put(self, block: pa.Table | BaseException | None) -> bool:
        while not self._closed:
            with contextlib.suppress(queue.Full):
                self._blocks.put(block, timeout=STOP_CHECK_S)
                return True
        return False

    def close(self) -> None:
        """End the stream and its actors, also if a reader hangs."""
        self._closed = True
        until = time.monotonic() + CLOSE_S
        while self._thread.is_alive() and time.monotonic() < until:
            for executor in self._executors():
                executor.shutdown(force=True)
            self._thread.join(STOP_CHECK_S)

    def _executors(self) -> list[StreamingExecutor]:
        """Return the running executor of this stream, if there is one."""
        dataset = str(self.shard.iterator._get_dataset_tag()["dataset"]).rpartition("_")[0]
        return [
            thread
            for thread in threading.enumerate()
            if isinstance(thread, StreamingExecutor) and thread.name.startswith(f"StreamingExecutor-{dataset}_")
        ]

    def busy_seconds(self) -> tuple[float, float]:
        """Return for how long the readers and the decoders have made blocks, as Ray Data counts it, per reader and per
        thread of a decoder."""
        self._executor = next(iter(self._executors()), self._executor)
        seconds = [0.0, 0.0]
        for operator in (self._executor and self._executor._topology) or {}:
            if isinstance(operator, ActorPoolMapOperator):
                decodes = PartDecoder.__name__ in operator.name
                threads = max(1, int(self.config.data_cpus)) if decodes else 1
                actors = max(1, operator.get_actor_info().running)
                seconds[decodes] += operator.metrics.block_generation_time / (actors * threads)
        return seconds[0], seconds[1]
