"""Training throughput: landmark, a plain PyTorch loop, and the upper bound of compute and decoding; 1 and 2 workers.

Run: python benchmarks/train.py [--quick]. For ResNet-50 at 224 px and ResNet-18 at 128 px, in fp32 if there is no GPU:
- ours: the packed dataset through Loader and TrainStep, as in training, from a folder and from S3;
- mock: the same step over one batch in memory; decode: the same loader without a step;
- the bound: 1 / (1/mock + 1/decode), since both use all cores; with a GPU, the slower of the two;
- plain: torch's DataLoader with Pillow over an image folder, and a plain training loop.
All alternate within a round and ratios are medians over rounds, so that other load affects all of them. Then two
workers of landmark on Ray Train are compared with two of torchrun, each with half of the cores. The last line is JSON,
saved to benchmarks/results/train.json.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
CORES = len(os.sched_getaffinity(0))
os.environ.update(
    AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark-secret", AWS_REGION="us-east-1",
    OMP_NUM_THREADS=str(CORES), PYTHONPATH=str(ROOT), KINETO_LOG_LEVEL="5",
    RAY_worker_niceness="0",  # as torchrun's processes; Ray's default of 15 loses CPU time to others
)  # fmt: skip

import pyarrow.parquet as pq
import ray
import torch
import torchvision
from torchrun_peer import PlainStep, folder_loader

from landmark.commands.prepare import prepare
from landmark.config import (
    AugmentConfig,
    ClusterConfig,
    ComputeConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    PrepareConfig,
    Recipe,
    ScheduleConfig,
    SyntheticConfig,
    TrainConfig,
    WorkersConfig,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Batch, Loader
from landmark.models import build_model, model_info
from landmark.storage import locate
from landmark.training.compute.device_prefetch import to_device
from landmark.training.compute.optim import Schedule
from landmark.training.distributed.local import default_device
from landmark.training.loop.step import TrainStep
from landmark.training.run import run_training
from tests.support.seaweed import Seaweed, free_ports

CLASSES = 20
DEVICE = default_device()
FP32 = ComputeConfig(amp="off") if DEVICE.type == "cpu" else ComputeConfig()
Method = Callable[[int], None]
"""Trains on, or decodes, this number of batches."""


@dataclass(kw_only=True, frozen=True)
class Case:
    """One model at one image size."""

    backbone: str
    size: int
    batch: int
    steps: int
    """Steps per turn."""


class SingleProcess:
    """A session of one rank that stores nothing."""

    rank = 0
    world_size = 1
    device = DEVICE

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model itself."""
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values."""
        return values


def make_datasets(folder: Path, images: int, server: Seaweed) -> tuple[PackedDataset, PackedDataset]:
    """Draw and pack images, into a folder and a bucket, and write the training images as an image folder."""
    prepare(
        PrepareConfig(
            output=str(folder / "packed"),
            source="synthetic",
            synthetic=SyntheticConfig(classes=CLASSES, images=images, image_size=320, tail=0.0),
            packing=PackingConfig(short_side=288),
        )
    )
    ray.shutdown()
    local, bucket = locate(folder / "packed"), locate(server.uri("packed"))
    for name in sorted(local.walk(), key=lambda name: name == "manifest.json"):
        (bucket / name).upload(folder / "packed" / name)
    dataset = PackedDataset.open(local.uri)
    for shard in dataset.split("train").shards:
        for row in pq.read_table(folder / "packed" / shard.path, columns=["image_id", "label", "image"]).to_pylist():
            target = folder / "images" / f"{row['label']:03d}" / f"{row['image_id']}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(row["image"])
    return dataset, PackedDataset.open(bucket.uri)


class Comparison:
    """All methods that alternate on one case."""

    def __init__(self, case: Case, local: PackedDataset, remote: PackedDataset, folder: Path) -> None:
        self.case = case
        loader = LoaderConfig(image_size=case.size, batch_size=case.batch, stream="thread")
        self.recipe = Recipe(
            epochs=10_000,
            model=ModelConfig(backbone=case.backbone),
            optimizer=OptimizerConfig(name="sgd", lr=0.01),
            schedule=ScheduleConfig(name="constant"),
            loader=loader,
            compute=FP32,
        )
        self.step, self.schedule = self._step()
        self.batches = self._batches(local)
        self.remote = self._batches(remote)
        self.batch_in_memory = next(self.batches)
        self.folder = folder
        self.methods: dict[str, Method] = {
            "ours": lambda n: self._train(self.batches, n),
            "mock": lambda n: self._train(self._repeat(), n),
            "decode": lambda n: self._decode(8 * n),
            "s3": lambda n: self._train(self.remote, n),
            "plain": self._plain(),
        }

    def _step(self) -> tuple[TrainStep, Schedule]:
        torch.manual_seed(0)
        model = build_model(self.recipe.model, classes=CLASSES, image_size=self.case.size).to(DEVICE)
        step = TrainStep(model, self.recipe, model_info(self.case.backbone), SingleProcess())
        schedule = Schedule(
            step.optimizer,
            self.recipe.schedule,
            optimizer_config=self.recipe.optimizer,
            steps_per_epoch=10,
            epochs=10_000,
            mode="max",
        )
        return step, schedule

    def _batches(self, dataset: PackedDataset) -> Iterator[Batch]:
        epochs = range(1, 10_000)
        with Loader(dataset, "train", self.recipe.loader, augment=AugmentConfig(), epochs=epochs) as loader:
            for epoch in epochs:
                yield from loader.epoch(epoch)

    def _repeat(self) -> Iterator[Batch]:
        while True:
            yield self.batch_in_memory

    def _train(self, batches: Iterator[Batch], steps: int) -> None:
        for batch, _ in zip(to_device(batches, DEVICE), range(steps), strict=False):
            self.step.run(batch, self.schedule, 0, self.case.batch)
        self._wait()

    def _decode(self, batches: int) -> None:
        for _ in range(batches):
            next(self.batches)

    def _plain(self) -> Method:
        model = torchvision.models.get_model(self.case.backbone, num_classes=CLASSES).to(DEVICE)
        step = PlainStep(model, DEVICE)
        loader = folder_loader(str(self.folder / "images"), self.case.size, self.case.batch, CORES)
        batches = (batch for _ in count() for batch in loader)

        def run(steps: int) -> None:
            for _ in range(steps):
                step.run(*next(batches))
            self._wait()

        return run

    def _wait(self) -> None:
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    def round(self) -> dict[str, float]:
        """Return the images/s of each method, alternating. One step before the clock starts fills its queues again."""
        throughput = {}
        for name, run in self.methods.items():
            run(1)
            start = time.perf_counter()
            run(self.case.steps)
            images = self.case.batch * self.case.steps * (8 if name == "decode" else 1)
            throughput[name] = images / (time.perf_counter() - start)
        sequential = 1 / (1 / throughput["mock"] + 1 / throughput["decode"])
        throughput["bound"] = sequential if DEVICE.type == "cpu" else min(throughput["mock"], throughput["decode"])
        return throughput

    def profile(self) -> dict[str, float]:
        """Return the seconds per step of each part, and of waiting for batches."""
        waited = 0.0
        with torch.profiler.profile() as profiler:
            for _ in range(2):
                start = time.perf_counter()
                batch = next(self.batches)
                waited += (time.perf_counter() - start) / 2
                self.step.run(batch, self.schedule, 0, self.case.batch)
                self._wait()
        parts = {"waiting for data": waited}
        for event in profiler.key_averages():
            if event.key.startswith("landmark: "):
                parts[event.key.removeprefix("landmark: ")] = event.cpu_time_total / 2e6
        return parts


def measure(case: Case, rounds: int, datasets: tuple[PackedDataset, PackedDataset], folder: Path) -> dict[str, float]:
    """Run one case's rounds and return its figures."""
    comparison = Comparison(case, *datasets, folder)
    found = [comparison.round() for _ in range(rounds)]
    name = case.backbone
    throughput = {key: statistics.median(throughput[key] for throughput in found) for key in found[0]}
    figures = {f"{name}_{key}_images_per_s": rate for key, rate in throughput.items()}
    for key, top, base in (
        ("over_bound", "ours", "bound"),
        ("s3_over_bound", "s3", "bound"),
        ("over_mock", "ours", "mock"),
        ("over_plain", "ours", "plain"),
    ):
        figures[f"{name}_{key}"] = statistics.median(throughput[top] / throughput[base] for throughput in found)
    text = ", ".join(f"{key} {rate:,.1f}" for key, rate in throughput.items())
    print(f"{name} at {case.size} px, batch {case.batch}, images/s: {text}", flush=True)
    parts = comparison.profile()
    total = sum(parts.values())
    text = ", ".join(f"{part} {seconds / total:.1%}" for part, seconds in sorted(parts.items(), key=lambda p: -p[1]))
    print(f"  step time: {text}; decoding runs in parallel, {1e3 / throughput['decode']:.2f} ms of all cores per image")
    if DEVICE.type == "cuda":
        figures[f"{name}_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return figures


def two_workers(case: Case, rounds: int, dataset: PackedDataset, folder: Path) -> dict[str, float]:
    """Compare two workers of landmark and of torchrun, from disk and memory, alternating. Only steady epochs count."""
    epochs = 3
    os.environ["OMP_NUM_THREADS"] = str(max(1, CORES // 2))  # Ray starts here and passes it to its workers
    found: dict[str, list[float]] = {"ours": [], "torchrun": [], "mock": []}
    for number in range(rounds):
        config = TrainConfig(
            dataset=dataset.location.uri,
            output=str(folder / "runs"),
            name=f"round{number}",
            epochs=epochs,
            model=ModelConfig(backbone=case.backbone),
            optimizer=OptimizerConfig(name="sgd", lr=0.01),
            schedule=ScheduleConfig(name="constant"),
            loader=LoaderConfig(image_size=case.size, batch_size=2 * case.batch, decode_threads=1),
            compute=FP32,
            workers=WorkersConfig(count=2),
            cluster=ClusterConfig(cpus=max(CORES, 4)),
            tensorboard=False,
        )
        run_training(config)
        lines = (folder / "runs" / config.name / "history.csv").read_text().splitlines()
        column = lines[0].split(",").index("images_per_s")
        found["ours"].append(statistics.median(float(line.split(",")[column]) for line in lines[2:]))
        for name, extra in (("torchrun", []), ("mock", ["--mock"])):
            found[name].append(torchrun(folder, case, epochs, extra))
        print(
            f"two workers, images/s: {', '.join(f'{key} {throughput[-1]:,.1f}' for key, throughput in found.items())}",
            flush=True,
        )
    ray.shutdown()
    ratios = {
        key: statistics.median(a / b for a, b in zip(found["ours"], found[other], strict=True))
        for key, other in (("ddp2_over_torchrun", "torchrun"), ("ddp2_over_torchrun_mock", "mock"))
    }
    return ratios | {f"ddp2_{key}_images_per_s": statistics.median(throughput) for key, throughput in found.items()}


def torchrun(folder: Path, case: Case, epochs: int, extra: list[str]) -> float:
    """Return torchrun's images/s of a steady epoch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "benchmarks" / "torchrun_peer.py"), str(folder / "images"), "--model", case.backbone]
    sizes = ["--size", str(case.size), "--batch", str(case.batch), "--epochs", str(epochs)]
    done = subprocess.run([*command, *script, *sizes, *extra], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"torchrun failed: {done.stderr[-2000:]}")
    return statistics.median(json.loads(done.stdout.strip().splitlines()[-1])[1:])


def cases(*, quick: bool) -> list[Case]:
    """Return the cases: sizes for minutes on two cores, or for a GPU."""
    if DEVICE.type == "cuda":
        return [
            Case(backbone="resnet50", size=224, batch=128, steps=5 if quick else 30),
            Case(backbone="resnet18", size=128, batch=256, steps=5 if quick else 30),
        ]
    return [
        Case(backbone="resnet50", size=224, batch=32, steps=2 if quick else 4),
        Case(backbone="resnet18", size=128, batch=32 if quick else 64, steps=4 if quick else 8),
    ]


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="use smaller batches and fewer images")
    parser.add_argument("--output", default=str(Path(__file__).with_name("results") / "train.json"))
    arguments = parser.parse_args()
    rounds = 3
    figures: dict[str, float] = {"cores": CORES, "quick": float(arguments.quick)}
    with tempfile.TemporaryDirectory() as name:
        folder, ports = Path(name), free_ports(4)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{ports[3]}"
        server = Seaweed(folder, ports)
        server.start()
        try:
            datasets = make_datasets(folder, 600 if arguments.quick else 1200, server)
            for case in cases(quick=arguments.quick):
                figures |= measure(case, rounds, datasets, folder)
        finally:
            server.stop()
        case = dataclasses.replace(cases(quick=arguments.quick)[1], steps=0)
        figures |= two_workers(case, 2 if arguments.quick else 3, datasets[0], folder)
    line = json.dumps({key: round(value, 3) for key, value in figures.items()})
    Path(arguments.output).write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
