"""Readers: plan units become Arrow tables of compressed images, by a thread or by Ray Data actors."""

import collections
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from landmark.config import LoaderConfig, UserError
from landmark.data.dataset import damage_marked
from landmark.data.plan import Unit
from landmark.storage import Location, NotFound, retrying

Item = TypeVar("Item")
Result = TypeVar("Result")

OPEN_FILES = 8
UNITS_AHEAD = 4
UNITS_A_BLOCK = 16


class UnitReader:
    """Reads units of one split: columns image (large binary), label int32, sample and draw int64, fault string.

    fault is null where all is well. A unit whose shard is missing or damaged comes as its planned rows all the
    same, without images, and fault names the shard and says what is wrong: what to do is the loader's affair.
    """

    def __init__(self, split: Location, shard_paths: list[str]) -> None:
        self.split = split
        self.shard_paths = shard_paths
        self._files: collections.OrderedDict[int, pq.ParquetFile] = collections.OrderedDict()

    def read(self, unit: Unit) -> pa.Table:
        """Return the unit's rows; raises UserError where the storage fails."""
        path = self.split / self.shard_paths[unit.shard]
        try:
            table = retrying(path.uri, damage_marked(lambda: self._read_row_group(unit)))
            if unit.rows[-1] >= len(table):
                raise pa.ArrowInvalid(f"row group {unit.row_group} has {len(table)} rows, fewer than planned")
        except NotFound:
            return _lost(unit, f"{path}: missing")
        except pa.ArrowInvalid as error:
            return _lost(unit, f"{path}: damaged ({' '.join(str(error).split())})")
        if not np.array_equal(unit.rows, np.arange(len(table))):
            table = table.take(unit.rows)
        return pa.table(
            {
                "image": table["image"].cast(pa.large_binary()),
                "label": table["label"],
                "sample": pa.array(unit.rows + unit.first_sample),
                "draw": pa.array(unit.draws),
                "fault": pa.nulls(len(table), pa.string()),
            }
        )

    def _read_row_group(self, unit: Unit) -> pa.Table:
        known = unit.shard in self._files
        try:
            return self._open(unit.shard).read_row_group(unit.row_group, columns=["label", "image"])
        except (OSError, pa.ArrowInvalid):
            # A connection that broke, or a file that was replaced, leaves one that cannot go on: the next try opens it anew.
            self._files.pop(unit.shard, None)
            if known:
                return self._read_row_group(unit)
            raise

    def _open(self, shard: int) -> pq.ParquetFile:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = self.split / self.shard_paths[shard]
        stream = path.fs.open_input_file(path.path)
        file = pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)
        self._files[shard] = file
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file


def _lost(unit: Unit, fault: str) -> pa.Table:
    """Return the rows of a unit whose images cannot be read."""
    rows = len(unit.rows)
    return pa.table(
        {
            "image": pa.nulls(rows, pa.large_binary()),
            "label": pa.nulls(rows, pa.int32()),
            "sample": pa.array(unit.rows + unit.first_sample),
            "draw": pa.array(unit.draws),
            "fault": pa.array([fault] * rows, pa.string()),
        }
    )


def read_by_thread(reader: UnitReader, units: Iterable[Unit]) -> Generator[pa.Table, None, None]:
    """Yield the units' tables in order, reading ahead in a thread of this process; `close` it when it is not used up."""
    with ThreadPoolExecutor(1, thread_name_prefix="landmark-read") as pool:
        yield from run_ahead(pool, reader.read, units, UNITS_AHEAD)


def run_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """Yield function(item) in order, with up to `ahead` calls under way."""
    pending: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


class _ReaderActor:
    """The long-lived Ray Data actor: one batch is a block of the plan, one output a unit's table."""

    def __init__(self, split: Location, shard_paths: list[str]) -> None:
        self.reader = UnitReader(split, shard_paths)

    def __call__(self, plan: pa.Table) -> Iterator[pa.Table]:
        for row in plan.to_pylist():
            rows, draws = (np.frombuffer(row.pop(name), dtype=np.int64) for name in ("rows", "draws"))
            epoch, number = row.pop("epoch"), row.pop("unit")
            table = self.reader.read(Unit(**row, rows=rows, draws=draws))
            for name, value in (("epoch", epoch), ("unit", number)):
                table = table.append_column(name, pa.array(np.full(len(table), value)))
            yield table


def read_by_ray(
    reader: UnitReader, epochs: Iterable[tuple[int, list[Unit]]], config: LoaderConfig
) -> Generator[tuple[int, int, pa.Table], None, None]:
    """Yield (epoch, number of the unit, table) for all units of all epochs as one Ray Data stream.

    Nothing drains between epochs. Order is not kept (keeping it spills): a table may come after later ones.
    """
    import ray

    from landmark.runtime import own_message

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 8 << 20
    plan = [
        {"epoch": epoch, "unit": number, **vars(unit), "rows": unit.rows.tobytes(), "draws": unit.draws.tobytes()}
        for epoch, units in epochs
        for number, unit in enumerate(units)
    ]
    # Not from_arrow, which asks for a whole CPU to look at the tables, and waits for ever where none is left.
    stream = ray.data.from_items(plan, override_num_blocks=-(-len(plan) // UNITS_A_BLOCK)).map_batches(
        _ReaderActor,
        fn_constructor_args=(reader.split, reader.shard_paths),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=config.reader_cpus,
        compute=ray.data.ActorPoolStrategy(size=config.readers),
    )
    try:
        for block in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
            yield from _by_unit(block)
    except ray.exceptions.RayError as error:
        if (message := own_message(error)) is None:
            raise
        raise UserError(message) from None


def _by_unit(block: pa.Table) -> Iterator[tuple[int, int, pa.Table]]:
    epochs, units = block["epoch"].to_numpy(), block["unit"].to_numpy()
    rows = block.drop_columns(["epoch", "unit"])
    starts = np.flatnonzero(np.diff(epochs, prepend=-1) | np.diff(units, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(epochs)], strict=True):
        yield int(epochs[start]), int(units[start]), rows.slice(start, stop - start)
