"""Sampling: how often an epoch uses each training image, and the remaining rows of an epoch."""

from dataclasses import dataclass

import numpy as np

from landmark.config import SamplingConfig
from landmark.data.dataset import PackedDataset
from landmark.data.loading.plan import ReadTask, RowGroups, Rows
from landmark.data.randomness import Stream, generator

PASSES = 4
"""Parts of an epoch over which the repetitions of an image are spread, and the maximum reads of a row group per
epoch."""


class EpochRows:
    """The rows of a split's epochs.

    With uniform sampling, the visit of a row is its sample number. Otherwise, an epoch has as many visits as the split
    has (selected) images, numbered from 0. The sample of a visit is a function of only (seed, epoch).
    """

    def __init__(self, dataset: PackedDataset, split: str, sampling: SamplingConfig, seed: int) -> None:
        self.groups = RowGroups.of(dataset, split)
        self.seed = seed
        self.total = int(self.groups.rows.sum())
        self._expected: np.ndarray | None = None
        self._length = dataset.manifest.splits[split].rows
        if sampling.name != "uniform":
            labels = dataset.sample_labels(split)
            self._expected = expected_draws(labels, sampling)
            self._length = self.total

    @property
    def length(self) -> int:
        """Upper bound (exclusive) of an epoch's visit numbers."""
        return self._length

    def left(self, epoch: int, consumed: np.ndarray | None) -> Rows:
        """Return the remaining rows of an epoch. consumed: a mask of the visits already used, bool (length,). None for
        none."""
        if self._expected is not None:
            return RepeatedDraws.of(self.groups, self._samples(epoch), consumed)
        if consumed is None:
            return self.groups
        wanted = ~consumed if self.groups.selected is None else self.groups.selected & ~consumed
        return self.groups.select(wanted)

    def _samples(self, epoch: int) -> np.ndarray:
        """Return the sample of each visit of an epoch, ascending, int64 (total,).

        Systematic sampling (Madow 1949) over samples in random order. Each sample occurs as often as expected, rounded
        up or down. The number of visits is exactly the number of rows.
        """
        assert self._expected is not None
        random = generator(self.seed, Stream.SAMPLING, epoch)
        order = random.permutation(len(self._expected))
        edges = np.floor(np.cumsum(self._expected[order]) + random.random())
        edges[-1] = self.total  # rounding of the sum may be off by one
        counts = np.diff(edges, prepend=0.0).astype(np.int64)
        return np.sort(np.repeat(order, counts))


def expected_draws(labels: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Return how often an epoch uses each sample on average, float64 (samples,). The sum is the number of labeled
    samples.

    labels: int64 (samples,), -1 for a sample outside the view. Each class has the same fraction of the visits
    (balanced), or a fraction proportional to the square root of its images (sqrt). max_repeats limits a class, and the
    other classes receive the rest.
    """
    counts = np.bincount(labels[labels >= 0])
    present = counts > 0
    weights = np.where(present, np.sqrt(counts) if sampling.name == "sqrt" else 1.0, 0.0)
    total = int(counts.sum())
    capped = np.zeros(len(counts), dtype=bool)
    visits = np.zeros(len(counts))
    while True:
        free = present & ~capped
        if not free.any():
            break
        rest = total - float((counts * sampling.max_repeats)[capped].sum())
        visits = np.where(capped, counts * sampling.max_repeats, weights * rest / weights[free].sum())
        over = free & (visits > counts * sampling.max_repeats)
        if not over.any():
            break
        capped |= over
    each = np.divide(visits, counts, out=np.zeros(len(counts)), where=present)
    return np.where(labels >= 0, each[np.maximum(labels, 0)], 0.0)


@dataclass(kw_only=True, frozen=True, eq=False)
class RepeatedDraws:
    """Visits in chunks. A chunk contains the visits of one row group in one part of the epoch."""

    groups: RowGroups
    """The split's row groups."""
    samples: np.ndarray
    """Sample of each visit, int64 (visits,)."""
    order: np.ndarray
    """Remaining visits, ordered by chunk and then by sample, int64."""
    group: np.ndarray
    """Row group of each chunk, int64 (chunks,)."""
    bounds: np.ndarray
    """Bounds of the chunks in `order`, int64 (chunks + 1,)."""

    @classmethod
    def of(cls, groups: RowGroups, samples: np.ndarray, consumed: np.ndarray | None) -> "RepeatedDraws":
        """Group the visits of an epoch that are not consumed into chunks. samples: ascending."""
        visits = np.arange(len(samples))
        copy = visits - np.searchsorted(samples, samples)
        # Repetitions of a sample are in different parts. Their first part varies, so that parts have equal sizes.
        part = (copy + samples) % PASSES
        group = np.searchsorted(groups.first_sample, samples, side="right") - 1
        chunk = part * len(groups.rows) + group
        order = np.argsort(chunk, kind="stable")
        if consumed is not None:
            order = order[~consumed[order]]
        kept, starts = np.unique(chunk[order], return_index=True)
        bounds = np.append(starts, len(order)).astype(np.int64)
        return cls(groups=groups, samples=samples, order=order, group=kept % len(groups.rows), bounds=bounds)

    @property
    def rows(self) -> np.ndarray:
        """Rows per chunk, int64 (chunks,)."""
        return np.diff(self.bounds)

    def task(self, index: int, start: int, stop: int) -> ReadTask:
        """Return rows [start, stop) of a chunk."""
        begin, end = int(self.bounds[index]), int(self.bounds[index + 1])
        visits = self.order[begin + start : min(begin + stop, end)]
        group = int(self.group[index])
        first = int(self.groups.first_sample[group])
        return ReadTask(
            shard=int(self.groups.shard[group]),
            row_group=int(self.groups.row_group[group]),
            first_sample=first,
            rows=self.samples[visits] - first,
            visits=visits,
        )
