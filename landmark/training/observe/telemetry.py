"""Prometheus metrics of a training process, served by Ray's exporter on each node with the name prefix `ray_`."""

import torch
from ray.util.metrics import Counter, Gauge

from landmark.data.loading.bottleneck import STAGES
from landmark.storage import Location
from landmark.training.observe.run_names import names_of
from landmark.training.observe.throughput import Throughput

TAGS = ("run", "trial", "rank")


class Telemetry:
    """Metrics of one training process: images, images per second, fraction of time spent waiting, epoch, GPU memory.

    Each rank reports its own. Sums over the ranks are those of the run. Costs nothing if no exporter runs.
    """

    def __init__(self, run: Location, rank: int, device: torch.device) -> None:
        name, trial = names_of(run)
        self.tags = {"run": name, "trial": trial, "rank": str(rank)}
        self.device = device
        self.images = Counter("landmark_images_total", "Images that this process trained on", TAGS)
        self.rate = Gauge("landmark_images_per_second", "Training images per second of this process", TAGS)
        self.waiting = Gauge("landmark_data_wait_fraction", "Fraction of time spent waiting for data, 0 to 1", TAGS)
        self.stages = Gauge("landmark_stage_wait_fraction", "Part of data_wait_fraction by stage", (*TAGS, "stage"))
        self.epoch = Gauge("landmark_epoch", "Current epoch of this process, from 1", TAGS)
        self.memory = Gauge("landmark_gpu_memory_bytes", "GPU memory reserved by torch, bytes", TAGS)

    def report_throughput(self, throughput: Throughput) -> None:
        """Report the throughput."""
        self.images.inc(throughput.images, self.tags)
        self.rate.set(throughput.images / throughput.seconds, self.tags)
        self.waiting.set(throughput.waited_s / throughput.seconds, self.tags)
        for stage, seconds in zip(STAGES, throughput.stages.values(), strict=True):
            self.stages.set(seconds / throughput.seconds, self.tags | {"stage": stage})
        self.epoch.set(throughput.epoch, self.tags)
        if self.device.type == "cuda":
            self.memory.set(torch.cuda.memory_reserved(self.device), self.tags)

    def close(self) -> None:
        """Reset the rates at the end of training, because a gauge keeps its last value."""
        self.rate.set(0.0, self.tags)
        self.waiting.set(0.0, self.tags)
        for stage in STAGES:
            self.stages.set(0.0, self.tags | {"stage": stage})
