"""Horovod compared with DDP: images/s of two workers, and the difference between the weights of equal runs.

Run: python benchmarks/horovod.py [--rounds 3]. Both are `landmark train` with two workers on Ray Train, in fp32 and
with the same synthetic images. They alternate within a round, so that other load affects both. Ratios are medians over
the rounds. The first epoch of a run is warm-up and does not count. Weights, including running statistics, are compared
after the last epoch of the first round. The last line is JSON, saved to benchmarks/results/horovod.json.
"""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Append the folder after the packages. Otherwise this file would be imported as `horovod`.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent] + [str(ROOT)]
CORES = len(os.sched_getaffinity(0))
os.environ.update(
    OMP_NUM_THREADS=str(max(1, CORES // 2)), PYTHONPATH=str(ROOT),
    RAY_worker_niceness="0",  # Ray's default niceness of 15 loses CPU time to other processes
)  # fmt: skip

import ray
import torch

from landmark.checkpoints.format import read_weights
from landmark.commands.prepare import prepare
from landmark.config import (
    ClusterConfig,
    ComputeConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    PrepareConfig,
    ScheduleConfig,
    SyntheticConfig,
    TrainConfig,
    WorkersConfig,
)
from landmark.training.run import run_training

BACKENDS = ("ddp", "horovod")
EPOCHS = 3


@dataclass(kw_only=True, frozen=True)
class Case:
    """One model at one image size."""

    backbone: str
    size: int
    batch: int
    """Images per step over both workers."""


CASES = [
    Case(backbone="resnet18", size=64, batch=64),
    Case(backbone="shufflenet_v2_x0_5", size=64, batch=64),
]


def config_of(case: Case, backend: str, folder: Path, number: int) -> TrainConfig:
    """Return one run's config."""
    return TrainConfig(
        dataset=str(folder / "packed"),
        output=str(folder / "runs"),
        name=f"{case.backbone}-{case.size}-{backend}-{number}",
        epochs=EPOCHS,
        model=ModelConfig(backbone=case.backbone),
        optimizer=OptimizerConfig(name="sgd", lr=0.01),
        schedule=ScheduleConfig(name="constant"),
        loader=LoaderConfig(image_size=case.size, batch_size=case.batch, decode_threads=1),
        compute=ComputeConfig(amp="off"),
        workers=WorkersConfig(count=2, backend=backend),
        cluster=ClusterConfig(cpus=max(CORES, 4)),
        tensorboard=False,
    )


def images_per_s(config: TrainConfig) -> float:
    """Train, and return the images/s of a steady epoch."""
    run_training(config)
    with (Path(config.output) / config.name / "history.csv").open() as lines:
        return statistics.median(float(row["images_per_s"]) for row in list(csv.DictReader(lines))[1:])


def largest_difference(one: TrainConfig, other: TrainConfig) -> float:
    """Return the maximum difference between the weights of two runs after the last epoch."""
    found = [
        read_weights(Path(config.output) / config.name / "checkpoints" / f"epoch-{EPOCHS:04d}")
        for config in (one, other)
    ]
    pairs = ((tensor.double(), found[1][name].double()) for name, tensor in found[0].items())
    return max(float(torch.abs(first - second).max()) for first, second in pairs)


def measure(case: Case, rounds: int, folder: Path) -> dict[str, float]:
    """Run both backends alternately. Prints and returns a case's figures."""
    throughput: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for number in range(rounds):
        for backend in BACKENDS if number % 2 == 0 else BACKENDS[::-1]:
            throughput[backend].append(images_per_s(config_of(case, backend, folder, number)))
    difference = largest_difference(*(config_of(case, backend, folder, 0) for backend in BACKENDS))
    ratio = statistics.median(
        horovod / ddp for horovod, ddp in zip(throughput["horovod"], throughput["ddp"], strict=True)
    )
    ddp, horovod = (statistics.median(throughput[backend]) for backend in BACKENDS)
    print(f"{case.backbone:20}{case.size:>4}{ddp:>10,.1f}{horovod:>10,.1f}{ratio:>8.2f}{difference:>14.2e}", flush=True)
    key = f"{case.backbone}_{case.size}"
    return {
        f"{key}_ddp_images_per_s": ddp,
        f"{key}_horovod_images_per_s": horovod,
        f"{key}_horovod_over_ddp": ratio,
        f"{key}_largest_difference": difference,
    }


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(Path(__file__).with_name("results") / "horovod.json"))
    arguments = parser.parse_args()
    figures: dict[str, float] = {"cores": CORES, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(
            PrepareConfig(
                output=str(folder / "packed"),
                source="synthetic",
                synthetic=SyntheticConfig(classes=20, images=800, image_size=96, tail=0.0),
                packing=PackingConfig(short_side=80),
            )
        )
        ray.shutdown()
        print(f"{'model':20}{'px':>4}{'ddp':>10}{'horovod':>10}{'ratio':>8}{'weight diff.':>16}")
        for case in CASES:
            figures |= measure(case, arguments.rounds, folder)
        ray.shutdown()
    line = json.dumps({key: float(f"{value:.4g}") for key, value in figures.items()})
    Path(arguments.output).write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
