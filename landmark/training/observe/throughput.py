"""Throughput of a training process within an epoch, measured periodically for its session."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from landmark.data.loading.bottleneck import StageSeconds

THROUGHPUT_INTERVAL_S = 10.0
"""Minimum seconds between two measurements."""


@dataclass(kw_only=True, frozen=True)
class Throughput:
    """Throughput of one process since the previous measurement."""

    epoch: int
    images: int
    """Images that the process trained on."""
    seconds: float
    """Wall time."""
    waited_s: float
    """Part of the wall time spent waiting for data."""
    stages: StageSeconds
    """waited_s by stage."""


class ThroughputMeter:
    """Counts a process's images and reports its throughput every THROUGHPUT_INTERVAL_S seconds, and the remainder at the end of an epoch.

    Reads a clock once per step and nothing from the device, so that the host never waits for a GPU.
    """

    def __init__(
        self,
        epoch: int,
        waited: list[float],
        stages: Callable[[], StageSeconds],
        report: Callable[[Throughput], object],
    ) -> None:
        """waited: seconds that training has waited for data. stages: returns how long its loader has waited."""
        self.epoch = epoch
        self.waited = waited
        self.stages = stages
        self.report = report
        self.images = 0
        self.since = time.perf_counter()
        self.waited_before = waited[0]
        self.stages_before = stages()

    def update(self, images: int) -> None:
        """Count a step's images."""
        self.images += images
        if time.perf_counter() - self.since >= THROUGHPUT_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Report the counts since the last report, if any."""
        now, stages = time.perf_counter(), self.stages()
        if self.images:
            waited_s = self.waited[0] - self.waited_before
            self.report(
                Throughput(
                    epoch=self.epoch,
                    images=self.images,
                    seconds=now - self.since,
                    waited_s=waited_s,
                    stages=stages.since(self.stages_before).within(waited_s),
                )
            )
        self.images, self.since, self.waited_before, self.stages_before = 0, now, self.waited[0], stages
