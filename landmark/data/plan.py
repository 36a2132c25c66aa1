"""Plans: which rows of which row groups a rank reads in an epoch, and how they fall into batches."""

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from landmark.config import UserError
from landmark.data.dataset import PackedDataset
from landmark.data.randomness import Stream, generator


@dataclass(kw_only=True, frozen=True)
class RowGroups:
    """All row groups of a split, in the order of the samples; arrays of one length."""

    shard: np.ndarray
    """Index of the shard in the manifest's list, int64."""
    row_group: np.ndarray
    """Index of the row group in its shard, int64."""
    first_sample: np.ndarray
    """Sample number of its first row, int64."""
    rows: np.ndarray
    """Rows to read of it, int64: all of them, or those selected."""
    size: np.ndarray
    """Rows it holds, int64."""
    selected: np.ndarray | None = None
    """Which samples of the split are read, bool (split rows,); None: all."""

    @classmethod
    def of(cls, dataset: PackedDataset, split: str) -> "RowGroups":
        """Derive the row groups of a split from the manifest alone, and of a selection those that hold a row of it."""
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
        """Keep the selected samples, bool (split rows,), and only the row groups that hold one."""
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

    def unit(self, index: int, start: int, stop: int) -> "Unit":
        """Return rows [start, stop) of those to read of one row group."""
        first, size = int(self.first_sample[index]), int(self.size[index])
        mine = None if self.selected is None else self.selected[first : first + size]
        rows = (np.arange(size) if mine is None else np.flatnonzero(mine))[start:stop]
        return Unit(
            shard=int(self.shard[index]),
            row_group=int(self.row_group[index]),
            first_sample=first,
            rows=rows,
            draws=first + rows,
        )


@dataclass(kw_only=True, frozen=True, eq=False)
class Unit:
    """Rows to read from one row group."""

    shard: int
    row_group: int
    first_sample: int
    """Sample number of the row group's first row."""
    rows: np.ndarray
    """Rows to read, counted in the row group, ascending; repeated where an epoch shows an image more than once: int64 (n,)."""
    draws: np.ndarray
    """Number of each row among all that the epoch shows: its sample, unless images repeat; int64 (n,). The key of the
    accounting and of the row's randomness. -1: shown to keep the ranks in step, and counted nowhere."""


class Rows(Protocol):
    """What is left to read of an epoch, in chunks that each lie in one row group."""

    @property
    def rows(self) -> np.ndarray:
        """Rows of each chunk, int64 (chunks,)."""
        ...

    def unit(self, index: int, start: int, stop: int) -> Unit:
        """Return rows [start, stop) of a chunk."""
        ...


@dataclass(kw_only=True, frozen=True)
class RankPlan:
    """What one rank reads in one epoch, or in the rest of one."""

    units: list[Unit]
    """Reads, in order; together exactly this rank's rows."""
    batch_rows: np.ndarray
    """Rows of each of this rank's batches, int64 (steps,)."""
    shares: np.ndarray
    """This rank's share of each step's images, times the ranks, float64 (steps,)."""

    @property
    def steps(self) -> int:
        """Number of batches."""
        return len(self.batch_rows)


def plan_training_epoch(
    left: Rows, *, rank: int, world_size: int, batch_size: int, seed: int, epoch: int, resumed: bool = False
) -> RankPlan:
    """Divide a shuffled epoch, or what is left of it, among the ranks: every row once, the same number of steps on each.

    The shuffled chunks, laid end to end, are cut into `world_size` parts whose lengths differ by
    one row at most (a chunk on a cut is read by both sides, each taking its rows). Each part is
    cut into the same number of batches, whose sizes differ by one at most: no tiny last batch, no
    dropped tail, no padding, and `batch_size` is met on average from below.

    resumed: what is left of an epoch that is divided again may be less than a row per rank. A rank without a row then takes
    part in the one step with a row whose share is 0. Where `batch_size` gives ranks two rows or more, so does this: a single
    row is shown twice, since some networks cannot be trained on one image.
    """
    total = int(left.rows.sum())
    if total < world_size and not resumed:
        raise UserError(f"{total} training images for {world_size} workers; use at most {total} workers")
    if not total:
        return RankPlan(units=[], batch_rows=np.zeros(0, dtype=np.int64), shares=np.zeros(0))
    order = generator(seed, Stream.EPOCH_ORDER, epoch).permutation(len(left.rows))
    steps = training_steps(total, world_size, batch_size, resumed=resumed)
    least = least_rows(world_size, batch_size, resumed)
    bounds = _cuts(total, world_size)
    start, stop = int(bounds[rank]), int(bounds[rank + 1])
    if start == stop:
        row = _repeated(left.unit(int(order[0]), 0, 1), least)
        units = [dataclasses.replace(row, draws=np.full(least, -1))]
        return RankPlan(units=units, batch_rows=np.array([least]), shares=np.zeros(1))
    parts = np.stack([np.diff(_cuts(int(n), steps)) for n in np.diff(bounds)])
    shares = parts[rank] * world_size / parts.sum(axis=0)
    units = _slice_units(left, order, start, stop)
    if stop - start < least:
        return RankPlan(units=[_repeated(units[0], least)], batch_rows=np.array([least]), shares=shares)
    return RankPlan(units=units, batch_rows=parts[rank], shares=shares)


def training_steps(total: int, world_size: int, batch_size: int, *, resumed: bool = False) -> int:
    """Return the steps of an epoch: enough for `batch_size`, but never more than leave each rank a row per step.

    resumed: of what is left of one, as plan_training_epoch divides it; 0 where nothing is.
    """
    if resumed and not total:
        return 0
    least = least_rows(world_size, batch_size, resumed)
    return max(1, min(-(-total // batch_size), total // (least * world_size)))


def least_rows(world_size: int, batch_size: int, resumed: bool) -> int:
    """Return the fewest rows that a rank has in a step."""
    return 2 if resumed and batch_size >= 2 * world_size else 1


def smallest_batch(total: int, world_size: int, batch_size: int) -> int:
    """Return the fewest rows that a rank has in any step of an epoch."""
    return total // world_size // training_steps(total, world_size, batch_size)


def plan_evaluation(groups: RowGroups, *, rank: int, world_size: int, batch_size: int) -> RankPlan:
    """Divide a split among the ranks in its own order: every row once; ranks may differ in steps.

    No collective may therefore depend on the step. `batch_size` is the whole world's; a rank's
    batches have batch_size / world_size rows, the last one what is left.
    """
    bounds = _cuts(int(groups.rows.sum()), world_size)
    start, stop = int(bounds[rank]), int(bounds[rank + 1])
    size = max(1, batch_size // world_size)
    full, rest = divmod(stop - start, size)
    batches = np.array([size] * full + [rest] * bool(rest), dtype=np.int64)
    units = _slice_units(groups, np.arange(len(groups.rows)), start, stop)
    return RankPlan(units=units, batch_rows=batches, shares=np.ones(len(batches)))


def _repeated(unit: Unit, times: int) -> Unit:
    """Return a unit of one row with that row so often; the account counts it once."""
    draws = np.append(unit.draws, np.full(times - 1, -1))
    return dataclasses.replace(unit, rows=np.repeat(unit.rows, times), draws=draws)


def _cuts(total: int, parts: int) -> np.ndarray:
    """Return the bounds of `parts` parts of a range, lengths differing by one at most: (parts + 1,)."""
    return np.arange(parts + 1, dtype=np.int64) * total // parts


def _slice_units(left: Rows, order: np.ndarray, start: int, stop: int) -> list[Unit]:
    """Return the units that hold rows [start, stop) of the chunks laid end to end in `order`."""
    ends = np.cumsum(left.rows[order])
    begins = ends - left.rows[order]
    touched = np.flatnonzero((ends > start) & (begins < stop))
    return [left.unit(int(order[i]), max(start - int(begins[i]), 0), stop - int(begins[i])) for i in touched]
