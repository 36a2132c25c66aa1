"""The read schedule: the rest of a rank's plan in windows that are shuffled, and regrouped into batches."""

import dataclasses
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
    weights: np.ndarray

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
            weights=plan.weights[done:],
        )


@dataclass(kw_only=True, frozen=True, eq=False)
class Window:
    """Tasks whose rows are shuffled together."""

    read_tasks: list[ReadTask]
    order: np.ndarray | None
    """Order of the rows of all tasks, int64 (n,). None: as read."""
    skipped: int
    """Number of rows, in that order, that are already done."""

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """Return the values of the window's remaining rows in their order, given those of all rows as read."""
        return (values if self.order is None else values[self.order])[self.skipped :]

    def as_read(self) -> "Window":
        """Return all rows of the window, not shuffled."""
        return Window(read_tasks=self.read_tasks, order=None, skipped=0)

    @property
    def rows(self) -> int:
        """Number of rows, with those that are already done."""
        return sum(len(task.rows) for task in self.read_tasks)

    @property
    def visits(self) -> np.ndarray:
        """Draw numbers of the remaining rows, int64 (n,)."""
        return self.arrange(np.concatenate([task.visits for task in self.read_tasks]))

    @property
    def samples(self) -> np.ndarray:
        """Sample numbers of the remaining rows, int64 (n,)."""
        return self.arrange(np.concatenate([task.first_sample + task.rows for task in self.read_tasks]))


def windows_of(schedule: ReadSchedule, seed: int | None, part: int = 0, parts: int = 1) -> Iterator[Window]:
    """Yield the windows of a schedule, or of one of `parts` consecutive parts. Rows are shuffled unless seed is None."""
    count = -(-len(schedule.read_tasks) // schedule.window)
    for number in range(part * count // parts, (part + 1) * count // parts):
        read_tasks = schedule.read_tasks[number * schedule.window : (number + 1) * schedule.window]
        window = Window(read_tasks=read_tasks, order=None, skipped=0 if number else schedule.skipped)
        if seed is not None:
            random = generator(seed, Stream.WINDOW_ORDER, schedule.epoch, schedule.first_window + number)
            window = dataclasses.replace(window, order=random.permutation(window.rows))
        yield window


def shuffle_windows(tables: Iterable[pa.Table], windows: Iterable[Window]) -> Iterator[pa.Table]:
    """Yield the remaining rows of each window in their order. tables: rows as read, each of one window."""
    source = iter(tables)
    for window in windows:
        gathered, missing = [], window.rows
        while missing > 0:
            gathered.append(next(source))
            missing -= len(gathered[-1])
        table = pa.concat_tables(gathered)
        if window.order is not None:
            table = take_zero_copy(table, "image", window.order)
        yield table.slice(window.skipped)


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
