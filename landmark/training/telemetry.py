"""A training process's metrics, for Prometheus: Ray's exporter on each node offers them under these names, `ray_` before them."""

import torch
from ray.util.metrics import Counter, Gauge

from landmark.storage import Location
from landmark.training.pace import Pace

TRIALS = "trials"
"""Folder of the trials' runs, below a study."""
TAGS = ("run", "trial", "rank")


def names_of(run: Location) -> tuple[str, str]:
    """Return the run's and the trial's name out of a run's place: a trial lies in its study's folder of trials."""
    parts = run.uri.rstrip("/").split("/")
    if len(parts) > 2 and parts[-2] == TRIALS:
        return parts[-3], parts[-1]
    return parts[-1], ""


class Telemetry:
    """What one training process tells of itself: images, their rate, its share of waiting, its epoch, its GPU's memory.

    Each rank tells its own; sums over the ranks are the run's. Costs nothing where no exporter runs.
    """

    def __init__(self, run: Location, rank: int, device: torch.device) -> None:
        name, trial = names_of(run)
        self.tags = {"run": name, "trial": trial, "rank": str(rank)}
        self.device = device
        self.images = Counter("landmark_images_total", "Images trained on by this process", TAGS)
        self.rate = Gauge("landmark_images_per_second", "Images a second of this process", TAGS)
        self.waiting = Gauge("landmark_data_wait_share", "Share of the time that it waited for data, 0 to 1", TAGS)
        self.epoch = Gauge("landmark_epoch", "Epoch that it is in, from 1", TAGS)
        self.memory = Gauge("landmark_gpu_memory_bytes", "Memory that torch holds on its GPU", TAGS)

    def measured(self, pace: Pace) -> None:
        """Tell a pace."""
        self.images.inc(pace.images, self.tags)
        self.rate.set(pace.images / pace.seconds, self.tags)
        self.waiting.set(pace.waited_s / pace.seconds, self.tags)
        self.epoch.set(pace.epoch, self.tags)
        if self.device.type == "cuda":
            self.memory.set(torch.cuda.memory_reserved(self.device), self.tags)

    def close(self) -> None:
        """Say that the process trains no longer; a gauge would keep its last value."""
        self.rate.set(0.0, self.tags)
        self.waiting.set(0.0, self.tags)
