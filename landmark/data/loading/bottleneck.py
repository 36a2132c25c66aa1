"""The bottleneck of training: the stage of the input pipeline that a process waits for, or its own computation."""

import collections
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

STAGES = ("storage", "decoding", "transfer")
DATA_WAIT = "data_wait_fraction"
"""Metric: fraction of the training time that was spent waiting for data, 0 to 1."""
RENAMED = {"data_wait_share": DATA_WAIT}
"""Former name of a metric -> name."""
COMPUTE_LIMIT = 0.05
"""A process that waits less than this fraction of its time is limited by its computation."""


@dataclass(kw_only=True, frozen=True)
class StageSeconds:
    """Seconds that a process waited for data, by stage."""

    storage: float = 0.0
    """Reading row groups from the storage or a cache."""
    decoding: float = 0.0
    """Decoding images, in this process or in decoders."""
    transfer: float = 0.0
    """Copying to this process through Ray's object store, and to the GPU."""

    def since(self, before: "StageSeconds") -> "StageSeconds":
        """Return the seconds after an earlier measurement."""
        passed = {name: getattr(self, name) - getattr(before, name) for name in STAGES}
        return StageSeconds(**{name: max(0.0, value) for name, value in passed.items()})

    def within(self, waited_s: float) -> "StageSeconds":
        """Return how the time for which training waited is divided among the stages. Their sum is waited_s.

        A loader works ahead, so it waits more than training does. It waits less only if a copy took the rest.
        """
        own = self.storage + self.decoding + self.transfer
        if own < waited_s:
            return dataclasses.replace(self, transfer=self.transfer + waited_s - own)
        scale = waited_s / own if own else 0.0
        return StageSeconds(**{name: getattr(self, name) * scale for name in STAGES})

    def values(self) -> list[float]:
        """Return the seconds in the order of STAGES."""
        return [getattr(self, name) for name in STAGES]


class StageClock:
    """Measures how long a loader's thread waits for rows and for decoded batches."""

    def __init__(self) -> None:
        self.reading_s = 0.0
        self.decoding_s = 0.0

    def reading(self, requests: Iterable[Item]) -> Iterator[Item]:
        """Yield the requests, and count the time until each is there."""
        source = iter(requests)
        while True:
            start = time.perf_counter()
            request = next(source, None)
            self.reading_s += time.perf_counter() - start
            if request is None:
                return
            yield request

    def decoding(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches, and count the time until each is there, without that of `reading`."""
        source = iter(batches)
        while True:
            start, reading_s = time.perf_counter(), self.reading_s
            batch = next(source, None)
            self.decoding_s += time.perf_counter() - start - (self.reading_s - reading_s)
            if batch is None:
                return
            yield batch


def stage_metric(stage: str) -> str:
    """Return the name of a stage's part of DATA_WAIT."""
    return f"{stage}_wait_fraction"


def current_names(metrics: Mapping[str, Item]) -> dict[str, Item]:
    """Return an epoch's metrics by their names, if an older version may have written them."""
    return {RENAMED.get(name, name): value for name, value in metrics.items()}


def bottleneck(metrics: Mapping[Any, Any]) -> str | None:
    """Return the bottleneck of an epoch: one of STAGES, or "compute". None if an older version wrote the metrics.

    metrics: DATA_WAIT and the metrics of the stages, as numbers or text.
    """
    if any(metrics.get(name) in (None, "") for name in (DATA_WAIT, *map(stage_metric, STAGES))):
        return None
    if float(metrics[DATA_WAIT]) < COMPUTE_LIMIT:
        return "compute"
    return max(STAGES, key=lambda stage: float(metrics[stage_metric(stage)]))


def bottleneck_text(metrics: Mapping[Any, Any]) -> str | None:
    """Return the bottleneck of an epoch and the fraction of time spent waiting as text. None as in `bottleneck`."""
    stage = bottleneck(metrics)
    return stage and f"{stage} (waits for data {float(metrics[DATA_WAIT]):.0%} of the time)"


def bottleneck_counts(rows: Iterable[Mapping[Any, Any]]) -> collections.Counter[str]:
    """Return how many of several epochs, one per trial, have each bottleneck. Epochs without one are not counted."""
    return collections.Counter(stage for row in rows if (stage := bottleneck(row)))


def counts_text(counts: collections.Counter[str]) -> str:
    """Return bottlenecks and the number of their trials as text, the most frequent first."""
    return ", ".join(f"{stage} ({count} trial{'s' * (count > 1)})" for stage, count in counts.most_common())
