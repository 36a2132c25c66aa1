"""Sums over the steps of an epoch: loss, hits, images, and what was skipped or lost."""

import dataclasses
from dataclasses import dataclass


@dataclass(kw_only=True, frozen=True)
class TrainTotals:
    """Sums over a rank's steps."""

    loss: float
    """Loss, summed over images."""
    hits: float
    """Correctly classified images. For mixed images, the label with the larger weight counts."""
    rows: int
    """Images, without those of skipped steps."""
    skipped: int = 0
    """Steps skipped because a gradient was not finite. Counted on rank 0, because all ranks skip the same steps."""
    lost: int = 0
    """Images that could not be read or decoded and were replaced by others."""


NO_TOTALS = TrainTotals(loss=0.0, hits=0.0, rows=0)


def added(one: TrainTotals, other: TrainTotals) -> TrainTotals:
    """Return the sum of two totals."""
    names = [field.name for field in dataclasses.fields(TrainTotals)]
    return TrainTotals(**{name: getattr(one, name) + getattr(other, name) for name in names})
