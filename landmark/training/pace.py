"""How fast a training process gets on within an epoch: what its session is told now and then."""

import time
from collections.abc import Callable
from dataclasses import dataclass

PACE_S = 10.0
"""Seconds between two measurements."""


@dataclass(kw_only=True, frozen=True)
class Pace:
    """What one process did since the measurement before."""

    epoch: int
    images: int
    """Images that it trained on."""
    seconds: float
    """Wall time that took."""
    waited_s: float
    """Part of it spent waiting for data."""


class PaceMeter:
    """Counts a process's images and hands over a Pace every PACE_S seconds, and what is left at the end of an epoch.

    Reads a clock once a step and nothing from the device, so that a GPU is not waited for.
    """

    def __init__(self, epoch: int, waited: list[float], told: Callable[[Pace], object]) -> None:
        self.epoch = epoch
        self.waited = waited
        self.told = told
        self.images = 0
        self.since = time.perf_counter()
        self.waited_before = waited[0]

    def update(self, images: int) -> None:
        """Count a step's images."""
        self.images += images
        if time.perf_counter() - self.since >= PACE_S:
            self.flush()

    def flush(self) -> None:
        """Hand over what was counted since the last time, if anything."""
        now = time.perf_counter()
        if self.images:
            waited_s = self.waited[0] - self.waited_before
            self.told(Pace(epoch=self.epoch, images=self.images, seconds=now - self.since, waited_s=waited_s))
        self.images, self.since, self.waited_before = 0, now, self.waited[0]
