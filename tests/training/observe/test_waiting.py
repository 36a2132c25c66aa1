"""No training step and no validation batch waits for the device.

Without a GPU this is shown on torch's meta device, which has shapes but no values: what would make the host wait for a GPU
(a number of it, a shape that follows from its values, a copy to main memory) is an error there. The mode finds copies to
the device that the host waits for. The suite of `make test-gpu` asks CUDA itself.
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
from tests.training.loop.test_step import Alone, batch_of, recipe

META = torch.device("meta")
CLASSES = 4
RMSPROP = OptimizerConfig(name="rmsprop", lr=1e-3)


class Waited(Exception):
    """The host would wait for the device."""


class Counted(Exception):
    """Validation has come to its sums, which it may wait for."""


class Far(Alone):
    device = META

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        if values.shape == (4,):
            raise Counted
        return values


class NoBlockingCopies(TorchDispatchMode):
    """Refuses copies between main memory and the device, unless the host does not wait for them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        copied = name == "_to_copy" and args[0].device.type == "cpu" and kwargs.get("device", args[0].device) == META
        set_from_host = name == "copy_" and args[0].device == META and args[1].device.type == "cpu"
        if (copied or set_from_host) and not kwargs.get("non_blocking", False):
            raise Waited(f"{name} of {tuple(args[-1].shape)}")
        return function(*args, **kwargs)


class NoConstants(TorchFunctionMode):
    """Refuses tensors that are made on the device of Python's numbers, which goes by a copy that the host waits for."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        made = name == "new_tensor" and args[0].device == META
        made |= name in ("tensor", "as_tensor") and str(kwargs.get("device")) == "meta"
        indexed = name in ("__getitem__", "__setitem__") and args[0].device == META and _has_list(args[1])
        if made or indexed:
            raise Waited(f"{name} of {args[1:]}")
        return function(*args, **kwargs)


def _has_list(index: Any) -> bool:
    return any(isinstance(part, list | np.ndarray) for part in (index if isinstance(index, tuple) else (index,)))


VARIED: dict[str, Recipe] = {
    "plain": recipe(optimizer=RMSPROP),
    "clipped, accumulated, averaged, augmented": recipe(
        optimizer=dataclasses.replace(RMSPROP, clip_norm=1.0, weight_decay=0.1),
        compute=ComputeConfig(amp="off", accumulate=3),
        ema=EmaConfig(decay=0.9),
        loss=LossConfig(label_smoothing=0.1, class_weights="sqrt"),
        augment=AugmentConfig(erasing=0.5, mixup=0.5, cutmix=0.5),
    ),
    "arcface": recipe(optimizer=RMSPROP, model=ModelConfig(backbone="deck_mlp", head=HeadConfig(name="arcface"))),
    "sampled": recipe(
        optimizer=RMSPROP, model=ModelConfig(backbone="deck_mlp", head=HeadConfig(name="subcenter", sample=0.5))
    ),
    "sampled, clipped, mixed": recipe(
        optimizer=OptimizerConfig(name="rmsprop", lr=1e-3, clip_norm=1.0),
        model=ModelConfig(backbone="deck_mlp", head=HeadConfig(sample=0.5)),
        loss=LossConfig(class_weights="sqrt", label_smoothing=0.1),
        augment=AugmentConfig(mixup=0.5),
    ),
}


def far_step(run: Recipe) -> tuple[TrainStep, Schedule]:
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, backbone=run.model.backbone))
    model = build_model(run.model, classes=CLASSES, image_size=16).to(META)
    step = TrainStep(model, run, model_info(run.model.backbone), Far(), np.arange(1, CLASSES + 1))
    return step, Schedule(
        step.optimizer, run.schedule, optimizer_config=run.optimizer, steps_per_epoch=10, epochs=10, mode="max"
    )


@pytest.mark.parametrize("chunk", [1 << 22, 16])
@pytest.mark.parametrize("name", VARIED)
def test_no_step_and_no_validation_batch_waits_for_the_device(name, chunk, monkeypatch):
    monkeypatch.setattr(chunked_cross_entropy, "CHUNK_LOGITS", chunk)
    step, schedule = far_step(VARIED[name])
    with NoBlockingCopies(), NoConstants():
        for number in range(3):
            step.run(batch_of(number), schedule, number, 8)
        with pytest.raises(Counted):
            validate(step.evaluated, [batch_of(9), batch_of(10, rows=5)], step.preprocess, step.session, CLASSES)


@pytest.mark.parametrize(
    "wait",
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
def test_what_waits_is_found(wait):
    with NoBlockingCopies(), NoConstants(), pytest.raises((Waited, RuntimeError, NotImplementedError)):
        wait(torch.zeros(3, device=META))
