"""Tests the resource estimates of trials, also against measured training processes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from landmark.config import (
    ComputeConfig,
    EmaConfig,
    HeadConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    ResizingConfig,
)
from landmark.search.trials.resource_estimates import (
    PROCESS_BYTES,
    fitting_in_memory,
    gpu_fraction,
    trial_flops,
    trial_footprint,
    trial_memory,
)
from tests.support.packed import write_packed

GIB = 2**30
MIB = 2**20
TRAINING = """
import sys
from landmark.config import ComputeConfig, LoaderConfig, ModelConfig, TrainConfig
from landmark.training.run import run_training
dataset, output, backbone, batch = sys.argv[1:]
run_training(
    TrainConfig(
        dataset=dataset, output=output, epochs=2, tensorboard=False, model=ModelConfig(backbone=backbone),
        compute=ComputeConfig(amp="off"), loader=LoaderConfig(image_size=64, batch_size=int(batch), decode_threads=1),
    )
)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def recipe(backbone: str = "resnet18", size: int = 64, batch: int = 32, **changes) -> Recipe:
    loader = LoaderConfig(image_size=size, batch_size=batch)
    off = {"compute": ComputeConfig(amp="off")}
    return Recipe(**({"model": ModelConfig(backbone=backbone), "loader": loader} | off | changes))


def peak_bytes(folder: Path, backbone: str, batch: int) -> int:
    """Return the peak main memory of a separate training process."""
    dataset = folder / "packed"
    if not dataset.exists():
        write_packed(dataset, {"train": [256], "val": [32]}, size=64)
    arguments = [str(dataset), str(folder / f"{backbone}-{batch}"), backbone, str(batch)]
    completed = subprocess.run(
        [sys.executable, "-c", TRAINING, *arguments], capture_output=True, text=True, check=True, cwd=folder
    )
    return int(completed.stdout.split()[-1]) * 1024


def test_estimated_memory_is_close_to_measured_memory(tmp_path):
    measured = {}
    for backbone, batch in (("resnet18", 32), ("resnet18", 256), ("shufflenet_v2_x1_0", 32)):
        measured[backbone, batch] = peak_bytes(tmp_path, backbone, batch)
        estimate = trial_memory(recipe(backbone, batch=batch), 4, 1)
        print(
            f"{backbone}, batch {batch}: {measured[backbone, batch] / MIB:.0f} MiB measured, "
            f"{estimate / MIB:.0f} MiB estimated"
        )
        assert measured[backbone, batch] / 2 < estimate < 2 * measured[backbone, batch]
    grown = measured["resnet18", 256] - measured["resnet18", 32]
    estimate = trial_memory(recipe(batch=256), 4, 1) - trial_memory(recipe(batch=32), 4, 1)
    assert grown / 2 < estimate < 2 * grown, "memory for the images, without that of the process itself"


def test_parameters_and_flops_are_counted_correctly():
    found = trial_footprint(recipe(size=224), 1000)
    assert found.parameters == 11_689_512
    assert found.trained == 4 * found.parameters
    assert trial_flops(recipe(size=224), 1000) == pytest.approx(2 * 1.814e9, rel=0.01)  # He et al. 2016: 1.8e9 products
    assert trial_flops(recipe(size=448), 1000) == pytest.approx(4 * trial_flops(recipe(size=224), 1000), rel=0.02)
    frozen = dataclasses.replace(recipe(size=224), model=ModelConfig(backbone="resnet18", freeze_backbone=True))
    assert trial_footprint(frozen, 1000).kept < found.kept / 100
    assert trial_footprint(frozen, 1000).trained == 4 * 513 * 1000


def test_memory_of_each_setting():
    base = recipe(optimizer=OptimizerConfig(name="sgd", momentum=0.0))
    weights = trial_footprint(base, 4).trained

    def more(changed: Recipe, workers: int = 1, *, gpu: bool = True) -> float:
        return (trial_memory(changed, 4, workers, gpu=gpu) - trial_memory(base, 4, 1, gpu=gpu)) / weights

    assert more(dataclasses.replace(base, optimizer=OptimizerConfig(name="sgd"))) == pytest.approx(1, abs=0.01)
    assert more(dataclasses.replace(base, optimizer=OptimizerConfig(name="adamw"))) == pytest.approx(2, abs=0.01)
    assert more(dataclasses.replace(base, ema=EmaConfig(decay=0.99))) == pytest.approx(1, abs=0.01)
    assert more(recipe(optimizer=base.optimizer, batch=64), workers=2) == pytest.approx(1, abs=0.01)
    half = {"compute": ComputeConfig(), "optimizer": base.optimizer}
    images = more(recipe(optimizer=base.optimizer, batch=256))
    assert more(recipe(batch=256, **half)) - more(recipe(**half)) == pytest.approx(images / 2, rel=0.01)
    assert more(recipe(batch=256, **half), gpu=False) == more(recipe(optimizer=base.optimizer, batch=256), gpu=False)
    accumulated = trial_memory(recipe(batch=512, compute=ComputeConfig(amp="off", accumulate=16)), 4, 1, gpu=True)
    assert accumulated < 0.6 * trial_memory(recipe(batch=512), 4, 1, gpu=True)
    resized = dataclasses.replace(base, resizing=ResizingConfig(start_size=32, scale_batch=True))
    assert more(resized) == pytest.approx(0, abs=0.1)


def test_a_sampled_head_needs_no_memory_for_logits_of_all_classes():
    """203,094 classes of width 512: weights of 397 MiB; logits of a batch of 256 in three tensors would be 595 MiB."""
    classes, width = 203_094, 512
    head = 4 * classes * width

    def memory(sample: float | None, workers: int = 1, **changes) -> int:
        model = ModelConfig(backbone="resnet18", neck=width, head=HeadConfig(name="arcface", sample=sample))
        optimizer = OptimizerConfig(name="sgd", **changes)
        return trial_memory(recipe(batch=256, model=model, optimizer=optimizer), classes, workers, gpu=True)

    none = dataclasses.replace(recipe(batch=256), optimizer=OptimizerConfig(name="sgd"))
    body = trial_memory(none, 2, 1, gpu=True)
    assert memory(0.1) - body == pytest.approx(2 * head + (110 << 20), rel=0.05)  # weights and momentum
    assert memory(0.1, workers=8) < memory(0.1) - 0.8 * head  # momentum is sharded, the weights are not
    assert memory(0.1, clip_norm=1.0) - memory(0.1) == pytest.approx(head * (0.1 + 256 / classes), rel=0.01)
    assert memory(None) > memory(0.1) + head
    assert memory(None) < memory(0.1) + 8 * head  # normalized class weights are kept once, not per image


@pytest.mark.parametrize(
    ("memory", "fraction"),
    [(2 * GIB, 1 / 4), (4 * GIB, 1 / 4), (5 * GIB, 1 / 3), (7 * GIB, 1 / 2), (9 * GIB, 1), (99 * GIB, 1)],
)
def test_small_trials_share_a_gpu_of_16_gib_plus_headroom(memory, fraction):
    assert gpu_fraction(memory, int(16.2 * GIB / 0.9)) == pytest.approx(fraction)


def test_processes_fit_a_nodes_memory():
    assert fitting_in_memory(2 * GIB, 20 * GIB) == 9
    assert fitting_in_memory(PROCESS_BYTES, PROCESS_BYTES) == 0
