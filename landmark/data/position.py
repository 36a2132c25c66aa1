"""Position: how far an epoch has come on all ranks together, to the single sample."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landmark.config import UserError

Sum = Callable[[np.ndarray], np.ndarray]
"""Sums uint8 arrays over up to 255 ranks."""


@dataclass(kw_only=True, eq=False)
class Position:
    """An epoch under way: who divided what was left of it, and what has been consumed since.

    The draws consumed are a bitmap, as large as the epoch. With the same division a run goes on with the batch after the
    last one, on another number of ranks or with other batches it divides what is left anew: either way nothing that a
    saved position records is shown again, and nothing else left out.
    """

    epoch: int
    """Number of the epoch, from 1."""
    division: tuple[int, ...]
    """What decides how it was divided: ranks, batch over all of them, row groups whose rows are mixed."""
    length: int
    """Draw numbers of the epoch lie below this."""
    before: np.ndarray | None = None
    """Draws consumed before it was so divided, bool (length,); None: none."""
    step: int = 0
    """Steps taken since it was so divided."""
    known: np.ndarray | None = None
    """Draws known to be consumed on any rank, bool (length,), those before included; None: none."""
    mine: np.ndarray = field(init=False)
    """Draws that this rank consumed since `known` was brought up to date."""

    def __post_init__(self) -> None:
        self.mine = np.zeros(self.length, dtype=bool)

    @functools.cached_property
    def begun(self) -> int:
        """Draws consumed before it was so divided."""
        return 0 if self.before is None else int(self.before.sum())

    def advance(self, draws: np.ndarray) -> None:
        """Note one step and the draws it consumed on this rank, int64 (n,); negative ones count nowhere."""
        self.mine[draws[draws >= 0]] = True
        self.step += 1

    def gather(self, total: Sum) -> np.ndarray:
        """Return the draws consumed so far on all ranks, bool (length,); called on every rank alike.

        One byte per draw is summed, not a packed bitmap: a draw that two ranks consumed does not change its neighbours.
        Raises UserError where there is one, because the ranks did not divide the same epoch.
        """
        counts = total(self.mine.view(np.uint8))
        if shared := int((counts > 1).sum()):
            raise UserError(
                f"{shared:,} images of epoch {self.epoch} were shown by more than one worker; check that all nodes read "
                "the same dataset with the same version of landmark"
            )
        everyones = counts > 0
        self.known = everyones if self.known is None else self.known | everyones
        self.mine[:] = False
        return self.known

    def redivided(self, division: tuple[int, ...]) -> "Position":
        """Return the position from which a run with that division goes on: this one where it is the same as before."""
        if division == self.division:
            return self
        return Position(epoch=self.epoch, division=division, length=self.length, before=self.known, known=self.known)

    def state(self) -> dict[str, Any]:
        """Return the position as plain values and packed bitmaps, uint8 arrays; `gather` was called just before."""
        return {
            "epoch": self.epoch,
            "division": self.division,
            "length": self.length,
            "step": self.step,
            "before": _packed(self.before),
            "known": _packed(self.known),
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Position":
        """Return the position that `state` gave, its arrays or tensors of them."""
        length = int(state["length"])
        return cls(
            epoch=int(state["epoch"]),
            division=tuple(int(number) for number in state["division"]),
            length=length,
            step=int(state["step"]),
            before=_unpacked(state["before"], length),
            known=_unpacked(state["known"], length),
        )


def _packed(bitmap: np.ndarray | None) -> np.ndarray | None:
    return None if bitmap is None else np.packbits(bitmap)


def _unpacked(packed: Any, length: int) -> np.ndarray | None:
    return None if packed is None else np.unpackbits(np.asarray(packed), count=length).astype(bool)
