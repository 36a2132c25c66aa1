"""GPU smoke tests of `make test-gpu`, which take less than three minutes on one or two GPUs.

Tests for both devices also run on the CPU in the normal test suite, so that only the device differs on a GPU.
"""

import contextlib
import copy
import dataclasses
import gc
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from landmark.checkpoints.format import copied
from landmark.config import ComputeConfig, HeadConfig, LoaderConfig, ModelConfig, OptimizerConfig, Recipe
from landmark.data.loading.jpeg import decode_batch
from landmark.data.loading.loader import Batch
from landmark.models import build_model, model_info
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.compute.device_prefetch import place, to_device
from landmark.training.compute.muon import orthogonalized
from landmark.training.compute.optim import Schedule
from landmark.training.compute.precision import inference_precision
from landmark.training.distributed.backends import Ddp
from landmark.training.largest_batch import largest_batch
from landmark.training.loop.step import TrainStep
from landmark.training.loop.validation import predict
from tests.support.packed import write_packed
from tests.support.runs import small_run
from tests.training.loop.test_step import recipe
from tests.training.observe.test_waiting import RECIPES

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, at its first use
CLASSES = 4
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NEEDS_TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
ON_GPU = pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])
ON_BOTH = pytest.mark.parametrize("kind", ["cpu", ON_GPU])
SGD = OptimizerConfig(name="sgd", lr=0.05)


class OneRank:
    """A session with one rank on a device."""

    rank, world_size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        return values


class DistributedRank(OneRank):
    """One of two ranks."""

    world_size = 2

    def __init__(self, device: torch.device, rank: int) -> None:
        super().__init__(device)
        self.rank = rank

    def prepare(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        return Ddp().all_reduce(values)

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        return Ddp().all_gather(values)

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        return Ddp().reduce_scatter(values)


@pytest.fixture(autouse=True)
def restore_settings() -> Iterator[None]:
    """Restore the process-wide settings that `set_up_device` changes."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    tf32, benchmark = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)


def step_on(
    device: torch.device, run: Recipe, session: OneRank | None = None, seed: int = 0
) -> tuple[TrainStep, Schedule]:
    """Return a training step of a recipe. The weights are initialized on the CPU, so they are equal on every device."""
    torch.manual_seed(seed)
    model = build_model(run.model, classes=CLASSES, image_size=run.loader.image_size).to(device)
    counts = np.arange(1, CLASSES + 1)
    step = TrainStep(model, run, model_info(run.model.backbone), session or OneRank(device), counts)
    return step, Schedule(
        step.optimizer, run.schedule, optimizer_config=run.optimizer, steps_per_epoch=100, epochs=10, mode="max"
    )


def batch_of(number: int, rows: int = 8, size: int = 16, part: slice = slice(None), weight: float = 1.0) -> Batch:
    random = np.random.default_rng(number)
    labels = random.integers(0, CLASSES, rows)
    images = (random.integers(0, 128, (rows, size, size, 3)) + labels[:, None, None, None] * 30).astype(np.uint8)
    samples, flip = np.arange(rows) + rows * number, random.random(rows) < 0.5
    values = {"images": images, "labels": labels, "samples": samples, "visits": samples, "flip": flip}
    return Batch(**{name: value[part] for name, value in values.items()}, weight=weight, epoch=1)


def small(backbone: str = "timm/resnet10t", size: int = 64, **changes: Any) -> Recipe:
    loader = LoaderConfig(batch_size=8, image_size=size)
    return recipe(model=ModelConfig(backbone=backbone), optimizer=SGD, loader=loader, **changes)


def train(step: TrainStep, schedule: Schedule, numbers: range, size: int = 64) -> None:
    for number in numbers:
        torch.manual_seed(number)
        step.run(batch_of(number, size=size), schedule, number, 8)


def weights_of(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in step.model.state_dict().items()}


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("amp", ["off", "auto"])
@pytest.mark.parametrize("name", RECIPES)
def test_no_call_in_a_step_synchronizes(name, amp):
    compute = dataclasses.replace(RECIPES[name].compute, amp=amp)
    device = torch.device("cuda", 0)
    step, schedule = step_on(device, dataclasses.replace(RECIPES[name], compute=compute))
    if step.precision.scaler.is_enabled():
        pytest.skip("this GPU has no bf16: fp16 checks once per step whether its gradients are finite")
    train(step, schedule, range(2), size=16)  # warm-up: load libraries and choose algorithms
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in to_device((batch_of(number) for number in range(2, 6)), device):
            step.run(batch, schedule, batch.host.samples[0] // 8, 8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.take_totals().rows == 48


@ON_BOTH
def test_fp16_with_clipping_and_accumulation_learns_as_fp32(kind):
    device = torch.device(kind)
    optimizer = dataclasses.replace(SGD, clip_norm=1.0)
    backbone, size = (
        ("timm/resnet10t", 64) if kind == "cuda" else ("reference_mlp", 16)
    )  # CPUs emulate fp16 in convolutions
    losses, updates = [], []
    for amp in ("off", "fp16"):
        run = small(backbone, size, compute=ComputeConfig(amp=amp, accumulate=2))
        step, schedule = step_on(device, dataclasses.replace(run, optimizer=optimizer))
        before = weights_of(step)
        train(step, schedule, range(12), size=size)
        totals = step.take_totals()
        assert totals.skipped <= 4 and totals.rows == 96 - 8 * totals.skipped
        losses.append(totals.loss / totals.rows)
        updates.append(
            torch.cat(
                [(value - before[name]).flatten() for name, value in weights_of(step).items() if "norm" not in name]
            )
        )
    assert losses[0] < 1.6 and losses[1] == pytest.approx(losses[0], rel=0.15)
    assert nn.functional.cosine_similarity(updates[0], updates[1], dim=0) > 0.8


@pytest.mark.parametrize(
    ("kind", "backbone"),
    [
        ("cpu", "timm/resnet10t"),
        pytest.param("cuda", "timm/resnet10t", marks=[pytest.mark.gpu, NEEDS_GPU]),
        pytest.param("cuda", "alexnet", marks=[pytest.mark.gpu, NEEDS_GPU]),  # its pooling is replaced
    ],
)
def test_a_resumed_run_is_bitwise_identical(kind, backbone):
    device = torch.device(kind)
    run = small(backbone, compute=ComputeConfig(deterministic=True))
    uninterrupted, schedule = step_on(device, run)
    train(uninterrupted, schedule, range(3))
    saved = copied({"weights": uninterrupted.model.state_dict(), "state": uninterrupted.state()})
    assert all(value.device.type == "cpu" for value in saved["weights"].values())
    train(uninterrupted, schedule, range(3, 6))
    resumed, again = step_on(device, run, seed=1)
    resumed.model.load_state_dict(saved["weights"])
    resumed.load_state(saved["state"])
    train(resumed, again, range(3, 6))
    expected = weights_of(uninterrupted)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(resumed).items())


def memory_in_use(device: torch.device) -> int:
    """Return the memory in use: the bytes that the GPU allocator has reserved, or the number of tensors on a CPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_reserved(device)
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


@ON_BOTH
def test_memory_is_flat_over_200_steps(kind):
    device = torch.device(kind)
    step, schedule = step_on(device, recipe(optimizer=SGD, model=ModelConfig(backbone="reference_mlp")))
    sizes = []
    for round_number in range(20):
        loaded = (batch_of(number) for number in range(10 * round_number, 10 * round_number + 10))
        for batch in to_device(loaded, device):
            step.run(batch, schedule, step.steps, 8)
        step.take_totals()
        sizes.append(memory_in_use(device))
    assert step.steps == 200
    assert sizes[-1] <= sizes[4] and max(sizes[4:]) == sizes[4], sizes


@ON_BOTH
def test_muon_orthogonalizes_matrices_of_low_rank(kind):
    """In bf16 on GPUs, in fp32 on CPUs: rounding must not give directions of noise large updates."""
    torch.manual_seed(0)
    for rows, columns in ((8, 512), (64, 576), (512, 4608)):
        matrix = torch.randn(rows, 3) @ torch.randn(3, columns) + 1e-3 * torch.randn(rows, columns)
        found = orthogonalized(matrix[None].to(kind)).float().cpu()
        values = torch.linalg.svdvals(found[0])
        assert values.max() < 1.35 and values[:3].min() > 0.6, (rows, columns)


@pytest.mark.gpu
@NEEDS_GPU
def test_the_largest_batch_is_measured_and_the_memory_is_free_again(tmp_path: Path):
    dataset = write_packed(tmp_path, {"train": [640], "val": [8]})
    before = torch.cuda.memory_reserved()
    assert largest_batch(small_run(dataset, tmp_path, model=ModelConfig(backbone="resnet18")), 64) == 64
    assert torch.cuda.memory_reserved() <= before + (64 << 20)


@ON_BOTH
def test_inference_matches_the_trained_model(kind):
    device = torch.device(kind)
    step, schedule = step_on(device, small())
    train(step, schedule, range(12))
    model = copy.deepcopy(step.model).eval()
    info = model_info("timm/resnet10t")
    precision = inference_precision(device, model, 64)
    assert (precision is None) == (kind == "cpu")
    found = [
        torch.cat(
            [
                output.float().cpu()
                for _, output, _ in predict(model.to(target), [batch_of(99, size=64)], prepared, used_precision)
            ]
        )
        for target, used_precision, prepared in (
            (device, precision, Preprocess(info.mean, info.std, device)),
            (torch.device("cpu"), None, Preprocess(info.mean, info.std, torch.device("cpu"))),
        )
    ]
    assert nn.functional.cosine_similarity(found[0], found[1]).min() > 0.99


DISTRIBUTED_RECIPES = {
    "plain": small("reference_mlp", 16, compute=ComputeConfig(amp="off")),
    "sampled": recipe(
        optimizer=dataclasses.replace(SGD, clip_norm=1.0),
        model=ModelConfig(backbone="reference_mlp", head=HeadConfig(name="arcface", sample=0.7)),
        loader=LoaderConfig(batch_size=8, image_size=16),
    ),
}


def _rank(rank: int, kind: str, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, rank=rank, world_size=2)
    rows, part = [(5, slice(0, 5)), (3, slice(5, 8))][rank]
    runs = dict(DISTRIBUTED_RECIPES)
    if kind == "cuda":  # torch has no SyncBatchNorm for CPUs
        runs["synced"] = small(compute=ComputeConfig(amp="off", sync_batchnorm=True))
    for name, run in runs.items():
        step, schedule = step_on(device, run, DistributedRank(device, rank))
        size = run.loader.image_size
        for number in range(4):
            step.run(batch_of(number, size=size, part=part, weight=rows * 2 / 8), schedule, number, 8)
        if step.partial_fc is not None:
            step.partial_fc.gather()
        torch.save(weights_of(step), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_TWO])])
def test_two_ranks_train_the_same_weights_as_one(kind, tmp_path: Path):
    """Uses Gloo on CPUs and NCCL on GPUs. GPUs also test SyncBatchNorm."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (kind, port, str(tmp_path)), nprocs=2)
    runs = dict(DISTRIBUTED_RECIPES) | ({"synced": small(compute=ComputeConfig(amp="off"))} if kind == "cuda" else {})
    for name, run in runs.items():
        one_rank, schedule = step_on(torch.device(kind), run)
        train(one_rank, schedule, range(4), size=run.loader.image_size)
        ranks = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)]
        for key, value in weights_of(one_rank).items():
            torch.testing.assert_close(
                ranks[0][key], value, rtol=2e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )
            assert torch.equal(ranks[0][key], ranks[1][key])


def images_per_s(step: TrainStep, schedule: Schedule, batches: Iterator[Any], device: torch.device, rows: int) -> float:
    """Return the images per second of training steps on batches."""
    start, count = time.perf_counter(), 0
    for batch in batches:
        step.run(batch, schedule, count, rows)
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return rows * count / (time.perf_counter() - start)


@ON_BOTH
def test_input_throughput_is_compared_with_the_device(kind, capsys):
    """Copies overlap with the steps of a GPU. The required number of decoding threads is printed, not checked."""
    device = torch.device(kind)
    gpu = kind == "cuda"
    backbone, rows, size, steps = ("resnet50", 128, 224, 20) if gpu else ("timm/resnet10t", 8, 32, 2)
    run = small(backbone, size, compute=ComputeConfig())
    step, schedule = step_on(device, run)
    loaded = [batch_of(number, rows, size) for number in range(4)]
    ready = place(loaded[0], device)
    images_per_s(step, schedule, iter([ready] * 3), device, rows)  # warm-up: the first steps choose algorithms
    without_copies = images_per_s(step, schedule, iter([ready] * steps), device, rows)
    with_copies = images_per_s(
        step, schedule, to_device((loaded[number % 4] for number in range(steps)), device), device, rows
    )
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (288, 288, 3), np.uint8))[1].tobytes()
    start = time.perf_counter()
    pixels, faults = decode_batch([jpeg] * 64, np.arange(64), size)
    decoded_per_s = 64 / (time.perf_counter() - start)
    assert not faults and pixels.shape == (64, size, size, 3)
    with capsys.disabled() if gpu else contextlib.nullcontext():
        print(
            f"{backbone} at {size} px: {without_copies:,.0f} images/s on the device, "
            f"{with_copies:,.0f} images/s with copies; one thread decodes {decoded_per_s:,.0f} images/s: "
            f"{without_copies / decoded_per_s:.1f} threads required per device"
        )
    assert min(without_copies, with_copies, decoded_per_s) > 0
    if gpu:
        assert with_copies > 0.7 * without_copies
