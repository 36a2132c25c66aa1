"""Tests that no training step and no validation batch waits for the device.

Without a GPU, the tests use torch's meta device, which has shapes but no values. Operations that would make the host
wait for a GPU, such as reading values or data-dependent shapes, are errors there. The modes below detect blocking
copies to the device. The tests of `make test-gpu` use CUDA's own check.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from landmark.config import (
    AugmentConfig,
    ComputeConfig,
    EmaConfig,
    HeadConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
)
from landmark.models import build_model, chunked_cross_entropy, model_info
from landmark.training.compute.optim import Schedule
from landmark.training.loop.step import TrainStep
from landmark.training.loop.validation import validate
from tests.training.loop.test_step import SingleRank, batch_of, recipe

META = torch.device("meta")
CLASSES = 4
RMSPROP = OptimizerConfig(name="rmsprop", lr=1e-3)


class Waited(Exception):
    """The host would wait for the device."""


class ReachedSums(Exception):
    """Validation has reached its final sums, for which it may wait."""


class MetaRank(SingleRank):
    device = META

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        if values.shape == (4,):
            raise ReachedSums
        return values


class NoBlockingCopies(TorchDispatchMode):
    """Raises Waited for blocking copies between main memory and the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        copied_to_device = (
            name == "_to_copy" and args[0].device.type == "cpu" and kwargs.get("device", args[0].device) == META
        )
        set_from_host = name == "copy_" and args[0].device == META and args[1].device.type == "cpu"
        if (copied_to_device or set_from_host) and not kwargs.get("non_blocking", False):
            raise Waited(f"{name} of {tuple(args[-1].shape)}")
        return function(*args, **kwargs)


class NoConstants(TorchFunctionMode):
    """Raises Waited if tensors on the device are created from Python numbers, which is a blocking copy."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        created = name == "new_tensor" and args[0].device == META
        created |= name in ("tensor", "as_tensor") and str(kwargs.get("device")) == "meta"
        indexed = name in ("__getitem__", "__setitem__") and args[0].device == META and _has_list(args[1])
        if created or indexed:
            raise Waited(f"{name} of {args[1:]}")
        return function(*args, **kwargs)


def _has_list(index: Any) -> bool:
    return any(isinstance(part, list | np.ndarray) for part in (index if isinstance(index, tuple) else (index,)))


RECIPES: dict[str, Recipe] = {
    "plain": recipe(optimizer=RMSPROP),
    "clipped, accumulated, averaged, augmented": recipe(
        optimizer=dataclasses.replace(RMSPROP, clip_norm=1.0, weight_decay=0.1),
        compute=ComputeConfig(amp="off", accumulate=3),
        ema=EmaConfig(decay=0.9),
        loss=LossConfig(label_smoothing=0.1, class_weights="sqrt"),
        augment=AugmentConfig(erasing=0.5, mixup=0.5, cutmix=0.5),
    ),
    "arcface": recipe(optimizer=RMSPROP, model=ModelConfig(backbone="reference_mlp", head=HeadConfig(name="arcface"))),
    "sampled": recipe(
        optimizer=RMSPROP, model=ModelConfig(backbone="reference_mlp", head=HeadConfig(name="subcenter", sample=0.5))
    ),
    "sampled, clipped, mixed": recipe(
        optimizer=OptimizerConfig(name="rmsprop", lr=1e-3, clip_norm=1.0),
        model=ModelConfig(backbone="reference_mlp", head=HeadConfig(sample=0.5)),
        loss=LossConfig(class_weights="sqrt", label_smoothing=0.1),
        augment=AugmentConfig(mixup=0.5),
    ),
}


def meta_step(run: Recipe) -> tuple[TrainStep, Schedule]:
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, backbone=run.model.backbone))
    model = build_model(run.model, classes=CLASSES, image_size=16).to(META)
    step = TrainStep(model, run, model_info(run.model.backbone), MetaRank(), np.arange(1, CLASSES + 1))
    return step, Schedule(
        step.optimizer, run.schedule, optimizer_config=run.optimizer, steps_per_epoch=10, epochs=10, mode="max"
    )


@pytest.mark.parametrize("chunk", [1 << 22, 16])
@pytest.mark.parametrize("name", RECIPES)
def test_no_step_and_no_validation_batch_waits_for_the_device(name, chunk, monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_LOGITS", chunk)
    step, schedule = meta_step(RECIPES[name])
    with NoBlockingCopies(), NoConstants():
        for number in range(3):
            step.run(batch_of(number), schedule, number, 8)
        with pytest.raises(ReachedSums):
            validate(step.evaluated, [batch_of(9), batch_of(10, rows=5)], step.preprocess, step.session, CLASSES)


@pytest.mark.parametrize(
    "blocking",
    [
        lambda t: t.new_tensor(3.0),
        lambda t: torch.tensor(3.0, device=t.device),
        lambda t: t[[0, 1]],
        lambda t: torch.ones(3).to(t.device),
        lambda t: t.copy_(torch.ones(3)),
        lambda t: t.sum().item(),
        lambda t: t[t > 0],
        lambda t: torch.nonzero(t),
        lambda t: t.cpu(),
        lambda t: bool((t > 0).all()),
        lambda t: torch.bincount(t.long(), minlength=9),
    ],
)
def test_blocking_operations_are_detected(blocking):
    with NoBlockingCopies(), NoConstants(), pytest.raises((Waited, RuntimeError, NotImplementedError)):
        blocking(torch.zeros(3, device=META))
