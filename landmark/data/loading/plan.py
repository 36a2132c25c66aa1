"""Plans: the rows that a rank reads in an epoch, and their partitioning into batches."""

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from landmark.config import UserError
from landmark.data.dataset import PackedDataset
from landmark.data.randomness import Stream, generator


@dataclass(kw_only=True, frozen=True)
class RowGroups:
    """All row groups of a split, in the order of the samples. All arrays have the same length."""

    shard: np.ndarray
    """Index of the shard in the manifest's list, int64."""
    row_group: np.ndarray
    """Index of the row group in its shard, int64."""
    first_sample: np.ndarray
    """Sample number of its first row, int64."""
    rows: np.ndarray
    """Number of rows to read, int64: all rows, or the selected ones."""
    size: np.ndarray
    """Number of rows, int64."""
    selected: np.ndarray | None = None
    """Mask of the samples of the split to read, bool (split rows,). None for all."""

    @classmethod
    def of(cls, dataset: PackedDataset, split: str) -> "RowGroups":
        """Derive the row groups of a split from only the manifest. A filtered view has only the row groups with
        selected rows."""
        size = dataset.manifest.row_group_rows
        shards = dataset.split(split).shards
        counts = np.array([shard.row_groups for shard in shards], dtype=np.int64)
        shard = np.repeat(np.arange(len(shards)), counts)
        row_group = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        shard_rows = np.array([entry.rows for entry in shards], dtype=np.int64)
        rows = np.minimum(size, shard_rows[shard] - row_group * size)
        groups = cls(shard=shard, row_group=row_group, first_sample=np.cumsum(rows) - rows, rows=rows, size=rows)
        selected = dataset.selected(split)
        return groups if selected is None else groups.select(selected)

    def select(self, selected: np.ndarray) -> "RowGroups":
        """Keep the selected samples, bool (split rows,), and only the row groups that contain one."""
        sums = np.concatenate([[0], np.cumsum(selected, dtype=np.int64)])
        counts = sums[self.first_sample + self.size] - sums[self.first_sample]
        kept = np.flatnonzero(counts)
        return RowGroups(
            shard=self.shard[kept],
            row_group=self.row_group[kept],
            first_sample=self.first_sample[kept],
            rows=counts[kept],
            size=self.size[kept],
            selected=selected,
        )

    def task(self, index: int, start: int, stop: int) -> "ReadTask":
        """Return rows [start, stop) of the rows to read of one row group."""
        first, size = int(self.first_sample[index]), int(self.size[index])
        mine = None if self.selected is None else self.selected[first : first + size]
        rows = (np.arange(size) if mine is None else np.flatnonzero(mine))[start:stop]
        return ReadTask(
            shard=int(self.shard[index]),
            row_group=int(self.row_group[index]),
            first_sample=first,
            rows=rows,
            visits=first + rows,
        )


@dataclass(kw_only=True, frozen=True, eq=False)
class ReadTask:
    """Rows to read from one row group."""

    shard: int
    row_group: int
    first_sample: int
    """Sample number of the row group's first row."""
    rows: np.ndarray
    """Rows to read, as ascending indices in the row group, int64 (n,). Indices repeat if an epoch uses an image more
    than once."""
    visits: np.ndarray
    """Number of each row among all rows of the epoch, int64 (n,). It is the sample number, unless images repeat. It is
    the key of the accounting and of the row's randomness. -1 is padding that keeps the ranks in step and is not
    counted."""


class Rows(Protocol):
    """The remaining rows of an epoch, in chunks of one row group each."""

    @property
    def rows(self) -> np.ndarray:
        """Rows per chunk, int64 (chunks,)."""
        ...

    def task(self, index: int, start: int, stop: int) -> ReadTask:
        """Return rows [start, stop) of a chunk."""
        ...


@dataclass(kw_only=True, frozen=True)
class RankPlan:
    """The rows that one rank reads in one epoch, or in the rest of one."""

    read_tasks: list[ReadTask]
    """Reads, in order. Together they are exactly this rank's rows."""
    batch_rows: np.ndarray
    """Rows of each of this rank's batches, int64 (steps,)."""
    weights: np.ndarray
    """This rank's fraction of each step's images, times the number of ranks, float64 (steps,)."""

    @property
    def steps(self) -> int:
        """Number of batches."""
        return len(self.batch_rows)


def plan_training_epoch(
    left: Rows, *, rank: int, world_size: int, batch_size: int, seed: int, epoch: int, resumed: bool = False
) -> RankPlan:
    """Divide a shuffled epoch, or the rest of one, among the ranks. Each row occurs once, and all ranks have equally
    many steps.

    The shuffled chunks are concatenated and cut into `world_size` parts, whose lengths differ by up to one row. If a
    cut is inside a chunk, both ranks read the chunk and take their rows. Each part is cut into the same number of
    batches, whose sizes differ by up to one. There is no small last batch, no dropped row and no padding. `batch_size`
    is the upper bound of the mean batch size.

    resumed: the rest of a redistributed epoch may have less than a row per rank. A rank without a row then participates
    in the only step with a row of weight 0. If `batch_size` gives each rank two rows or more, the padding has two rows
    as well. A single row is repeated, because some models cannot be trained on one image.
    """
    total = int(left.rows.sum())
    if total < world_size and not resumed:
        raise UserError(f"{total} training images for {world_size} workers; use at most {total} workers")
    if not total:
        return RankPlan(read_tasks=[], batch_rows=np.zeros(0, dtype=np.int64), weights=np.zeros(0))
    order = generator(seed, Stream.EPOCH_ORDER, epoch).permutation(len(left.rows))
    steps = training_steps(total, world_size, batch_size, resumed=resumed)
    least = min_rows(world_size, batch_size, resumed)
    bounds = _cuts(total, world_size)
    start, stop = int(bounds[rank]), int(bounds[rank + 1])
    if start == stop:
        row = _repeated(left.task(int(order[0]), 0, 1), least)
        read_tasks = [dataclasses.replace(row, visits=np.full(least, -1))]
        return RankPlan(read_tasks=read_tasks, batch_rows=np.array([least]), weights=np.zeros(1))
    parts = np.stack([np.diff(_cuts(int(n), steps)) for n in np.diff(bounds)])
    weights = parts[rank] * world_size / parts.sum(axis=0)
    read_tasks = _slice_tasks(left, order, start, stop)
    if stop - start < least:
        return RankPlan(read_tasks=[_repeated(read_tasks[0], least)], batch_rows=np.array([least]), weights=weights)
    return RankPlan(read_tasks=read_tasks, batch_rows=parts[rank], weights=weights)


def training_steps(total: int, world_size: int, batch_size: int, *, resumed: bool = False) -> int:
    """Return the steps of an epoch: enough for `batch_size`, limited so that each rank has a row per step.

    resumed: the steps of the rest of an epoch, as plan_training_epoch divides it, 0 for an empty rest.
    """
    if resumed and not total:
        return 0
    least = min_rows(world_size, batch_size, resumed)
    return max(1, min(-(-total // batch_size), total // (least * world_size)))


def min_rows(world_size: int, batch_size: int, resumed: bool) -> int:
    """Return the minimum rows per rank and step."""
    return 2 if resumed and batch_size >= 2 * world_size else 1


def min_batch_rows(total: int, world_size: int, batch_size: int) -> int:
    """Return the minimum rows of a rank in any step of an epoch."""
    return total // world_size // training_steps(total, world_size, batch_size)


def plan_evaluation(groups: RowGroups, *, rank: int, world_size: int, batch_size: int) -> RankPlan:
    """Divide a split among the ranks in its own order. Each row occurs once. Ranks may differ in steps.

    No collective operation may therefore depend on the step. `batch_size` is the global batch size. A rank's batches
    have batch_size / world_size rows, the last one may have fewer.
    """
    bounds = _cuts(int(groups.rows.sum()), world_size)
    start, stop = int(bounds[rank]), int(bounds[rank + 1])
    size = max(1, batch_size // world_size)
    full, rest = divmod(stop - start, size)
    batches = np.array([size] * full + [rest] * bool(rest), dtype=np.int64)
    read_tasks = _slice_tasks(groups, np.arange(len(groups.rows)), start, stop)
    return RankPlan(read_tasks=read_tasks, batch_rows=batches, weights=np.ones(len(batches)))


def _repeated(task: ReadTask, times: int) -> ReadTask:
    """Return a task of one row with that row repeated. The accounting counts it once."""
    visits = np.append(task.visits, np.full(times - 1, -1))
    return dataclasses.replace(task, rows=np.repeat(task.rows, times), visits=visits)


def _cuts(total: int, parts: int) -> np.ndarray:
    """Return the bounds of `parts` parts of a range, (parts + 1,). The lengths differ by up to one."""
    return np.arange(parts + 1, dtype=np.int64) * total // parts


def _slice_tasks(left: Rows, order: np.ndarray, start: int, stop: int) -> list[ReadTask]:
    """Return the tasks that contain rows [start, stop) of the chunks, concatenated in `order`."""
    ends = np.cumsum(left.rows[order])
    begins = ends - left.rows[order]
    touched = np.flatnonzero((ends > start) & (begins < stop))
    return [left.task(int(order[i]), max(start - int(begins[i]), 0), stop - int(begins[i])) for i in touched]
