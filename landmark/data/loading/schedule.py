"""The read schedule: the rest of a rank's plan in windows that are shuffled, and regrouped into batches."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from landmark.data.arrow_binary import take_zero_copy
from landmark.data.loading.plan import RankPlan, ReadTask
from landmark.data.randomness import Stream, generator


@dataclass(kw_only=True, frozen=True)
class ReadSchedule:
    """The remainder of a rank's plan after its first batches."""

    epoch: int
    read_tasks: list[ReadTask]
    """Tasks to read, in complete windows."""
    window: int
    """Number of tasks whose rows are shuffled together."""
    first_window: int
    """Index of the first window to read."""
    skipped: int
    """Rows of that window that are already done."""
    batch_rows: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, epoch: int, plan: RankPlan, done: int, window: int) -> "ReadSchedule":
        """Skip the first `done` batches. Windows that they cover completely are not read."""
        skipped, first = int(plan.batch_rows[:done].sum()), 0
        sizes = [
            sum(len(task.rows) for task in plan.read_tasks[at : at + window])
            for at in range(0, len(plan.read_tasks), window)
        ]
        while first < len(sizes) and skipped >= sizes[first]:
            skipped -= sizes[first]
            first += 1
        return cls(
            epoch=epoch,
            read_tasks=plan.read_tasks[first * window :],
            window=window,
            first_window=first,
            skipped=skipped,
            batch_rows=plan.batch_rows[done:],
            shares=plan.shares[done:],
        )


def shuffle_windows(tables: Iterable[pa.Table], schedule: ReadSchedule, seed: int | None) -> Iterator[pa.Table]:
    """Yield the rows of each window of tables, shuffled unless seed is None. The rows of the first window that are
    already done are left out."""
    source = iter(tables)
    number, skipped = schedule.first_window, schedule.skipped
    while gathered := list(itertools.islice(source, schedule.window)):
        table = pa.concat_tables(gathered)
        if seed is not None:
            table = take_zero_copy(
                table, "image", generator(seed, Stream.WINDOW_ORDER, schedule.epoch, number).permutation(len(table))
            )
        yield table.slice(skipped)
        number, skipped = number + 1, 0


def rebatch(tables: Iterable[pa.Table], sizes: np.ndarray) -> Iterator[pa.Table]:
    """Regroup tables into tables of the given sizes. Raises ValueError if rows are missing."""
    source = iter(tables)
    rest: list[pa.Table] = []
    have = 0
    for size in sizes:
        while have < size:
            table = next(source, None)
            if table is None:
                raise ValueError(f"the stream ended {size - have} rows before the end of its plan")
            rest.append(table)
            have += len(table)
        joined = pa.concat_tables(rest)
        yield joined.slice(0, int(size))
        have -= int(size)
        rest = [joined.slice(int(size))] if have else []
