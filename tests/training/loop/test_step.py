"""Tests the training step: accumulation, EMA, skipped and fatal steps, restored state, two ranks."""

import copy
import dataclasses
import math
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from landmark.config import (
    AugmentConfig,
    ComputeConfig,
    EmaConfig,
    LoaderConfig,
    LossConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    UserError,
)
from landmark.data.loading.loader import Batch
from landmark.models import ModelInfo
from landmark.training.compute.optim import Schedule
from landmark.training.loop.state import seed_generators
from landmark.training.loop.step import TrainStep
from landmark.training.loop.validation import validate

INFO = ModelInfo(name="tiny", source="reference", image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
FP32 = ComputeConfig(amp="off")
STEADY = OptimizerConfig(name="sgd", lr=0.1, momentum=0.9)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: the models are so small that more threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class SingleRank:
    """A session with one rank."""

    rank = 0
    world_size = 1
    device = torch.device("cpu")

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        return values


def tiny(*, norm: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, stride=2), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def recipe(**changes: Any) -> Recipe:
    base = Recipe(
        optimizer=STEADY,
        schedule=ScheduleConfig(name="constant"),
        compute=FP32,
        loader=LoaderConfig(batch_size=8, image_size=16),
    )
    return dataclasses.replace(base, **changes)


def step_of(model: nn.Module, run: Recipe, session: Any = None, **options: Any) -> tuple[TrainStep, Schedule]:
    step = TrainStep(model, run, INFO, session or SingleRank(), **options)
    return step, Schedule(
        step.optimizer, run.schedule, optimizer_config=run.optimizer, steps_per_epoch=10, epochs=10, mode="max"
    )


def batch_of(number: int, rows: int = 8, weight: float = 1.0, epoch: int = 1) -> Batch:
    random = np.random.default_rng(number)
    labels = random.integers(0, 4, rows)
    images = random.integers(0, 256, (rows, 16, 16, 3)) // 2 + labels[:, None, None, None] * 30
    samples = np.arange(number * rows, (number + 1) * rows)
    flip = random.random(rows) < 0.5
    return Batch(
        images=images.astype(np.uint8),
        labels=labels,
        samples=samples,
        visits=samples,
        flip=flip,
        weight=weight,
        epoch=epoch,
    )


def trained(run: Recipe, steps: int = 5, model: nn.Module | None = None) -> TrainStep:
    step, schedule = step_of(model or tiny(), run)
    for number in range(steps):
        step.run(batch_of(number), schedule, number, 8)
    return step


def same(one: nn.Module, two: nn.Module, **tolerance: float) -> bool:
    pairs = zip(one.state_dict().items(), two.state_dict().items(), strict=True)
    return all(name == other and torch.allclose(a.double(), b.double(), **tolerance) for (name, a), (other, b) in pairs)


EVERYTHING = recipe(
    augment=AugmentConfig(erasing=0.3, mixup=0.4, cutmix=1.0),
    loss=LossConfig(label_smoothing=0.1, class_weights="sqrt"),
    ema=EmaConfig(decay=0.9),
    compute=ComputeConfig(accumulate=2),
    optimizer=OptimizerConfig(name="sgd", lr=0.1, weight_decay=1e-3, clip_norm=1.0, nonfinite="skip"),
)


@pytest.mark.parametrize("parts", [3, 20])
def test_gradient_accumulation_equals_one_large_step(parts):
    complete = trained(recipe(), model=tiny(norm=False))
    accumulated = trained(recipe(compute=ComputeConfig(amp="off", accumulate=parts)), model=tiny(norm=False))
    assert same(complete.model, accumulated.model, rtol=1e-4, atol=1e-6)
    assert dataclasses.astuple(complete.take_totals()) == pytest.approx(dataclasses.astuple(accumulated.take_totals()))


@pytest.mark.parametrize("amp", ["bf16", "fp16", "auto"])
def test_half_precision_learns_as_fp32_does(amp):
    fp32, half = trained(recipe()), trained(recipe(compute=ComputeConfig(amp=amp)))
    assert half.precision.dtype in (None, torch.bfloat16, torch.float16)
    assert half.take_totals().loss == pytest.approx(fp32.take_totals().loss, rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())
    batches = [batch_of(90), batch_of(91)]
    found = [
        validate(s.evaluated, batches, s.preprocess, SingleRank(), 4, s.precision)["val_loss"] for s in (fp32, half)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.05)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_does_not_change_results(channels_last):
    step = trained(recipe(compute=ComputeConfig(amp="off", channels_last=channels_last)))
    assert step.model[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert same(step.model, trained(recipe()).model, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_weights_follow_the_definition(warmup):
    run = recipe(ema=EmaConfig(decay=0.8, warmup=warmup))
    model = tiny()
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    step, schedule = step_of(model, run)
    for number in range(1, 6):
        step.run(batch_of(number), schedule, number, 8)
        decay = min(0.8, (1 + number) / (10 + number)) if warmup else 0.8
        expected = [decay * a + (1 - decay) * w.detach() for a, w in zip(expected, model.parameters(), strict=True)]
    for found, expected_weight in zip(step.evaluated.parameters(), expected, strict=True):
        assert torch.allclose(found, expected_weight, atol=1e-6)
    assert torch.equal(step.evaluated[1].running_mean, model[1].running_mean)
    assert step.evaluated is not model and not step.evaluated.training and same(model, trained(run).model) is False


@pytest.mark.parametrize(
    "run",
    [
        EVERYTHING,
        recipe(),
        recipe(optimizer=OptimizerConfig(name="adamw")),
        recipe(optimizer=OptimizerConfig(name="rmsprop")),
        recipe(compute=ComputeConfig(amp="fp16")),
    ],
    ids=["everything", "sgd", "adamw", "rmsprop", "fp16"],
)
def test_a_resumed_step_continues_bitwise(run, tmp_path):
    counts = {"class_counts": np.array([5, 1, 3, 9])}
    uninterrupted, schedule = step_of(tiny(), run, **counts)
    for number in range(3):
        uninterrupted.run(batch_of(number), schedule, number, 8)
    uninterrupted.take_totals()
    # As in a checkpoint, tensors lose their memory format.
    weights = {name: tensor.clone().contiguous() for name, tensor in uninterrupted.evaluated.state_dict().items()}
    torch.save({"step": _contiguous(uninterrupted.state())}, tmp_path / "state.pt")
    resumed, again = step_of(tiny(seed=1), run, **counts)
    resumed.model.load_state_dict(weights)
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True)["step"])
    for number in range(3, 6):
        uninterrupted.run(batch_of(number), schedule, number, 8)
        resumed.run(batch_of(number), again, number, 8)
    assert same(uninterrupted.model, resumed.model, rtol=0, atol=0)
    assert same(uninterrupted.evaluated, resumed.evaluated, rtol=0, atol=0)
    assert uninterrupted.take_totals() == resumed.take_totals()


def _contiguous(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone().contiguous()
    if isinstance(value, dict):
        return {key: _contiguous(item) for key, item in value.items()}
    return [_contiguous(item) for item in value] if isinstance(value, list) else value


def test_gradient_clipping_bounds_the_update():
    run = recipe(optimizer=OptimizerConfig(name="sgd", lr=1.0, momentum=0.0, clip_norm=0.01))
    model = tiny()
    before = copy.deepcopy(model)
    trained(run, steps=1, model=model)
    changes = [a.detach() - b.detach() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert nn.utils.get_total_norm(changes).item() == pytest.approx(0.01, rel=1e-3)


def test_class_weights_follow_the_training_images():
    step, _ = step_of(tiny(), recipe(loss=LossConfig(class_weights="balanced")), class_counts=np.array([1, 1, 2, 0]))
    assert step.objective._class_weights.tolist() == pytest.approx([4 / 3, 4 / 3, 2 / 3, 0])


def test_logit_adjustment_follows_the_training_images():
    counts = np.array([1, 1, 20, 1])
    step, _ = step_of(tiny(), recipe(loss=LossConfig(logit_adjustment=2.0)), class_counts=counts)
    assert step.objective._adjustment.tolist() == pytest.approx([0, 0, 2 * np.log(20), 0])


def test_hits_count_the_label_with_the_larger_mixup_weight():
    run = recipe(optimizer=OptimizerConfig(name="sgd", lr=1e-9), augment=AugmentConfig(mixup=0.2))
    step, schedule = step_of(tiny(), run)
    batch = batch_of(0, rows=50)
    step.run(dataclasses.replace(batch, labels=np.zeros(50, dtype=np.int64)), schedule, 0, 50)
    totals = step.take_totals()
    assert totals.rows == 50 and 0 <= totals.hits <= 50
    with torch.no_grad():
        step.model[-1].bias.copy_(torch.tensor([1e3, 0.0, 0.0, 0.0]))
    step.run(dataclasses.replace(batch, labels=np.zeros(50, dtype=np.int64)), schedule, 0, 50)
    assert step.take_totals().hits == 50


class Fragile(nn.Module):
    """Turns black images into infinite values, which also affect the batch norm statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        black = (inputs.amax((1, 2, 3), keepdim=True) < -1.99).float()
        return self.body(inputs + black / (1 - black))


def black_batch(number: int) -> Batch:
    batch = batch_of(number)
    return dataclasses.replace(batch, images=np.zeros_like(batch.images))


def test_a_non_finite_step_is_skipped_and_counted():
    run = dataclasses.replace(EVERYTHING, compute=FP32, augment=AugmentConfig(), loss=LossConfig())
    torch.manual_seed(0)
    step, schedule = step_of(Fragile(), run)
    clean, other = step_of(copy.deepcopy(step.model), run)
    for number in range(4):
        step.run(batch_of(number), schedule, number, 8)
        clean.run(batch_of(number), other, number, 8)
    before = copy.deepcopy(step.optimizer.state_dict()["state"])
    step.run(black_batch(9), schedule, 4, 8)
    after = step.optimizer.state_dict()["state"]
    assert all(torch.equal(before[k]["momentum_buffer"], after[k]["momentum_buffer"]) for k in before)
    assert same(step.model, clean.model, rtol=0, atol=0) and same(step.evaluated, clean.evaluated, rtol=0, atol=0)
    totals = step.take_totals()
    assert (totals.skipped, totals.rows) == (1, 32) and math.isfinite(totals.loss)


@pytest.mark.parametrize("steps_after", [0, 3])
def test_a_non_finite_loss_ends_the_run_and_names_its_first_step(steps_after):
    torch.manual_seed(0)
    step, schedule = step_of(Fragile(), recipe())
    step.run(batch_of(0), schedule, 0, 8)
    step.check_finite()
    step.run(dataclasses.replace(black_batch(1), epoch=2), schedule, 1, 8)
    for number in range(steps_after):
        step.run(batch_of(number, epoch=2), schedule, 2 + number, 8)
    for check in (step.check_finite, step.take_totals):
        with pytest.raises(UserError, match=r"^the loss became nan in epoch 2 \(step 2\); lower optimizer.lr or set"):
            check()


def test_non_finite_weights_end_the_run_even_if_the_loss_was_finite():
    step = trained(recipe(optimizer=OptimizerConfig(name="sgd", lr=1e38)), steps=1)
    with pytest.raises(UserError, match=r"the weights are not finite in epoch 1 \(step 1\)"):
        step.check_finite()


def test_fp16_finds_its_scale_without_ending_the_run():
    step, schedule = step_of(tiny(), recipe(compute=ComputeConfig(amp="fp16")))
    step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    for number in range(48):
        step.run(batch_of(number), schedule, number, 8)
    totals = step.take_totals()
    assert 40 < totals.skipped < 48 and totals.rows == (48 - totals.skipped) * 8


def test_a_step_restores_training_mode_except_for_frozen_norms():
    model = tiny()
    model[1].requires_grad_(False)
    step, schedule = step_of(model, recipe())
    for _ in range(2):
        model.eval()
        step.run(batch_of(0), schedule, 0, 8)
        assert model.training and not model[1].training
    assert model[1].num_batches_tracked == 0


class GlooRank(SingleRank):
    """One of two ranks over Gloo that counts its all-reduced buckets."""

    world_size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.exchanges = 0

    def prepare(self, model: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        wrapped.register_comm_hook(None, self._count)
        return wrapped

    def _count(self, _: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.exchanges += 1
        work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(values)
        return values


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    session = GlooRank(rank)
    run = recipe(
        compute=ComputeConfig(amp="off", accumulate=3),
        optimizer=OptimizerConfig(name="sgd", lr=0.1, clip_norm=0.5, nonfinite="skip"),
    )
    torch.manual_seed(0)
    step, schedule = step_of(Fragile(), run, session)
    halves = [(5, slice(0, 5)), (3, slice(5, 8))]
    for number in range(4):
        rows, part = halves[rank]
        batch = batch_of(number)
        # In this batch, only the images of one rank are black.
        batch = black_batch(number) if number == 2 and rank == 1 else batch
        local = {name: getattr(batch, name)[part] for name in ("images", "labels", "samples", "visits", "flip")}
        step.run(dataclasses.replace(batch, weight=rows * 2 / 8, **local), schedule, number, 8)
    torch.save((step.model.state_dict(), dataclasses.asdict(step.take_totals()), session.exchanges), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_two_ranks_reduce_once_per_step_and_skip_the_same_steps(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    (weights, totals, exchanges), (others, other_totals, _) = (torch.load(tmp_path / f"{rank}") for rank in (0, 1))
    assert all(torch.equal(weights[name], others[name]) for name in weights if "running" not in name)
    assert exchanges == 4
    assert (totals["skipped"], other_totals["skipped"]) == (1, 0)
    assert (totals["rows"], other_totals["rows"]) == (15, 9)
    assert all(tensor.isfinite().all() for state in (weights, others) for tensor in state.values())


def test_a_step_is_seeded_as_by_manual_seed():
    torch.manual_seed(2**63 + 7)
    expected = torch.rand(3)
    torch.rand(5)
    seed_generators(2**63 + 7, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_a_step_that_does_not_fit_into_memory_is_computed_in_more_micro_batches(monkeypatch):
    """The allocation of the device fails above 3 images. The weights are those of the same batches in parts of 2."""

    class Limited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny(norm=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training and len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.".removeprefix("CUDA "))
            return self.body(images)

    step, schedule = step_of(Limited(), recipe())
    lines: list[str] = []
    step.show = lines.append
    for number in range(5):
        step.run(batch_of(number), schedule, number, 8)
    assert step.accumulate == 4 and [line.rpartition("; ")[2] for line in lines] == [
        "continuing with compute.accumulate 2, with the same batch size",
        "continuing with compute.accumulate 4, with the same batch size",
    ]
    parts = trained(recipe(compute=ComputeConfig(amp="off", accumulate=4)), model=tiny(norm=False))
    assert all(
        torch.equal(one, other) for one, other in zip(step.model.parameters(), parts.model.parameters(), strict=True)
    )
    assert dataclasses.astuple(step.take_totals()) == dataclasses.astuple(parts.take_totals())


def test_other_errors_and_single_images_are_not_repeated(monkeypatch):
    calls: list[int] = []

    class Failing(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.body, self.error = tiny(norm=False), error

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            raise self.error

    step, schedule = step_of(Failing(RuntimeError("shapes cannot be multiplied")), recipe())
    with pytest.raises(RuntimeError, match="shapes"):
        step.run(batch_of(0), schedule, 0, 8)
    assert calls == [8]
    calls.clear()
    step, schedule = step_of(Failing(torch.OutOfMemoryError("out of memory")), recipe())
    with pytest.raises(torch.OutOfMemoryError):
        step.run(batch_of(0), schedule, 0, 8)
    assert calls == [8, 4, 2, 1]
    calls.clear()
    session = SingleRank()
    session.world_size = 2
    step, schedule = step_of(Failing(torch.OutOfMemoryError("out of memory")), recipe(), session)
    with pytest.raises(torch.OutOfMemoryError):  # the other rank waits for this one's gradients
        step.run(batch_of(0), schedule, 0, 8)
    assert calls == [8]


LIMITED = """
import resource, sys
import torch
from tests.training.loop.test_step import batch_of, recipe, step_of, tiny
import numpy as np, dataclasses

torch.set_num_threads(1)
model = tiny(norm=False)
step, schedule = step_of(model, recipe())
step.show = print


def images(number, rows):
    batch = batch_of(number, rows)
    large = np.repeat(np.repeat(batch.images, 20, axis=1), 20, axis=2)
    return dataclasses.replace(batch, images=np.ascontiguousarray(large))


step.run(images(0, 2), schedule, 0, 8)
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (290 << 20), resource.RLIM_INFINITY))
step.run(images(1, 64), schedule, 1, 8)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
found = [parameter.detach().clone() for parameter in model.parameters()]
whole = tiny(norm=False)
other, schedule = step_of(whole, recipe())
for number, rows in ((0, 2), (1, 64)):
    other.run(images(number, rows), schedule, number, 8)
assert other.accumulate == 1 < step.accumulate
for one, two in zip(found, whole.parameters()):
    torch.testing.assert_close(one, two.detach(), rtol=1e-3, atol=1e-5)
print("equal")
"""


def test_a_process_without_enough_memory_takes_the_same_step_in_parts():
    """The operating system refuses the memory, and the weights are those of the step in one part."""
    found = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "continuing with compute.accumulate" in found.stdout and found.stdout.endswith("equal\n")
