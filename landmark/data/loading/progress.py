"""Progress of an epoch over all ranks, recorded per sample."""

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landmark.config import UserError

Sum = Callable[[np.ndarray], np.ndarray]
"""Sums uint8 arrays over up to 255 ranks."""


@dataclass(kw_only=True, eq=False)
class EpochProgress:
    """An epoch in progress: how its remaining rows were divided among the ranks, and the rows consumed since.

    The consumed visits are a bitmap of the epoch's length. With the same division, a run resumes at the next batch. With
    another number of ranks or batch size, it redistributes the remaining rows. In both cases, no recorded row is
    repeated, and no other row is skipped.
    """

    epoch: int
    """Number of the epoch, from 1."""
    partitioning: tuple[int, ...]
    """Values that determine the division: number of ranks, global batch size, row groups that are shuffled together."""
    length: int
    """Upper bound (exclusive) of the epoch's visit numbers."""
    before: np.ndarray | None = None
    """Visits consumed before this division, bool (length,). None for none."""
    step: int = 0
    """Steps since this division."""
    consumed: np.ndarray | None = None
    """Visits known to be consumed on any rank, bool (length,), including `before`. None for none."""
    local: np.ndarray = field(init=False)
    """Visits that this rank consumed since the last update of `consumed`."""

    def __post_init__(self) -> None:
        self.local = np.zeros(self.length, dtype=bool)

    @functools.cached_property
    def begun(self) -> int:
        """Number of visits consumed before this division."""
        return 0 if self.before is None else int(self.before.sum())

    def advance(self, visits: np.ndarray) -> None:
        """Record one step and the visits that it consumed on this rank, int64 (n,). Negative visits are not counted."""
        self.local[visits[visits >= 0]] = True
        self.step += 1

    def gather(self, total: Sum) -> np.ndarray:
        """Return the visits consumed so far on all ranks, bool (length,). Collective: all ranks must call it.

        One byte per visit is summed instead of a packed bitmap, so that a visit that two ranks consumed does not affect
        others. Raises UserError for such a visit, because the ranks did not divide the same epoch.
        """
        counts = total(self.local.view(np.uint8))
        if shared := int((counts > 1).sum()):
            raise UserError(
                f"{shared:,} images of epoch {self.epoch} were used by more than one worker; check that all nodes read "
                "the same dataset with the same version of landmark"
            )
        all_counts = counts > 0
        self.consumed = all_counts if self.consumed is None else self.consumed | all_counts
        self.local[:] = False
        return self.consumed

    def repartitioned(self, partitioning: tuple[int, ...]) -> "EpochProgress":
        """Return the position from which a run with that division resumes. It is this position if the division is the
        same."""
        if partitioning == self.partitioning:
            return self
        return EpochProgress(
            epoch=self.epoch,
            partitioning=partitioning,
            length=self.length,
            before=self.consumed,
            consumed=self.consumed,
        )

    def state(self) -> dict[str, Any]:
        """Return the position as plain values and packed bitmaps, uint8 arrays. Call `gather` directly before."""
        return {
            "epoch": self.epoch,
            "division": self.partitioning,
            "length": self.length,
            "step": self.step,
            "before": _packed(self.before),
            "known": _packed(self.consumed),
        }

    def to_bytes(self) -> bytes:
        """Return the position as a NumPy archive."""
        buffer = io.BytesIO()
        np.savez(buffer, **{name: value for name, value in self.state().items() if value is not None})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "EpochProgress":
        """Return the position from a result of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return cls.of({"before": None, "known": None} | dict(archive))

    @classmethod
    def of(cls, state: dict[str, Any]) -> "EpochProgress":
        """Return the position from a result of `state`, with arrays or tensors."""
        length = int(state["length"])
        return cls(
            epoch=int(state["epoch"]),
            partitioning=tuple(int(number) for number in state["division"]),
            length=length,
            step=int(state["step"]),
            before=_unpacked(state["before"], length),
            consumed=_unpacked(state["known"], length),
        )


def _packed(bitmap: np.ndarray | None) -> np.ndarray | None:
    return None if bitmap is None else np.packbits(bitmap)


def _unpacked(packed: Any, length: int) -> np.ndarray | None:
    return None if packed is None else np.unpackbits(np.asarray(packed), count=length).astype(bool)
