"""Time limit of a run: its position on the schedule by wall time, and when its last epoch ends."""

import time

import torch

from landmark.training.loop.session import Session
from landmark.training.loop.triggers import SYNC_INTERVAL_STEPS

CHECKED = 0.1
"""Fraction of the remaining steps after which several ranks compare the clock again."""
FORWARD = 0.5
"""Estimated time of validating an image as a fraction of that of training on one, until an epoch was validated."""


class TimeLimit:
    """Ends training so that the last validation and its checkpoint fit into a limit of wall time.

    Schedules follow the fraction of the time that has passed, as in budgeted training (Li et al. 2020, arXiv 1905.04753). All
    ranks use the clock of rank 0. Time before a resume counts, time between two attempts does not.
    """

    def __init__(self, limit_s: float, session: Session, val_rows: int) -> None:
        self.limit_s = limit_s
        self.session = session
        self.fraction = 0.0
        """Fraction of the training time that has passed, 0 to 1, the same on every rank."""
        self._val_rows = val_rows
        self._start = time.monotonic()
        self._validation_s: float | None = None
        self._epoch_start: tuple[float, int] | None = None
        self._next_step = 1
        """Step of the epoch after which the ranks next compare the clock."""

    @property
    def seconds(self) -> float:
        """Seconds that have passed on this rank's clock."""
        return time.monotonic() - self._start

    def load(self, seconds: float) -> None:
        """Continue a run that had used some seconds."""
        self._start = time.monotonic() - seconds

    def begin_epoch(self, rows: int) -> None:
        """Record the start of an epoch's training. rows: images of the epoch that are already done."""
        self._epoch_start = (time.monotonic(), rows)
        self._next_step = 0
        self._synchronize(0.0, 1)

    def ends(self, step: int, rows: int) -> bool:
        """Return whether training ends after this step, and update the fraction. Call it on every rank.

        step: steps of this epoch. rows: images of the epoch that are done, over all ranks. Several ranks compare the clock
        after at most SYNC_INTERVAL_STEPS steps, and after fewer if these would take much of the time that is left.
        """
        if self._next_step == 0:  # the first step since the epoch was begun or resumed
            self._next_step = step
        if step >= self._next_step:
            self._synchronize(self._reserved(rows), step)
        return self.fraction >= 1

    def validated(self, seconds: float) -> None:
        """Record how long it took to validate an epoch and to report it."""
        self._validation_s = seconds

    def fits_epoch(self) -> bool:
        """Return whether enough time is left for more training than another validation takes. Call it on every rank."""
        own = self.limit_s - self.seconds > 2 * (self._validation_s or 0.0)
        return self._of_rank_0(float(own)) == [1.0]

    def _reserved(self, rows: int) -> float:
        """Return the seconds that the last validation will take, at most half of the limit."""
        if self._validation_s is None:
            assert self._epoch_start is not None
            start, before = self._epoch_start
            epoch_s = (time.monotonic() - start) / max(rows - before, 1)
            return min(FORWARD * epoch_s * self._val_rows, self.limit_s / 2)
        return min(self._validation_s, self.limit_s / 2)

    def _synchronize(self, reserved_s: float, step: int) -> None:
        if self.session.world_size == 1:
            self.fraction = max(self.fraction, min(1.0, self.seconds / (self.limit_s - reserved_s)))
            return
        passed, interval = self._of_rank_0(
            min(1.0, self.seconds / (self.limit_s - reserved_s)), self._interval(reserved_s, step)
        )
        self.fraction = max(self.fraction, passed)
        if self._next_step:
            self._next_step = step + round(interval)

    def _interval(self, reserved_s: float, step: int) -> float:
        """Return the number of steps until the next comparison: a part of those for which time is left, by this rank."""
        assert self._epoch_start is not None
        step_s = (time.monotonic() - self._epoch_start[0]) / step
        left = (self.limit_s - reserved_s - self.seconds) / max(step_s, 1e-6)
        return float(min(max(1, int(left * CHECKED)), SYNC_INTERVAL_STEPS))

    def _of_rank_0(self, *values: float) -> list[float]:
        """Return the values of rank 0, on every rank."""
        if self.session.world_size == 1:
            return [*values]
        own = torch.tensor(values, dtype=torch.float64, device=self.session.device)
        return self.session.all_reduce(own if self.session.rank == 0 else torch.zeros_like(own)).tolist()
