"""Tests that gradient checkpointing gives identical results with less memory; unsupported models are errors."""

import dataclasses

import pytest
import torch
import torchvision
from torch import nn

from landmark.config import ComputeConfig, ModelConfig, OptimizerConfig, UserError
from landmark.models import build_model, build_skeleton, model_info
from landmark.training.compute.gradient_checkpointing import blocks, checkpoint_blocks
from landmark.training.compute.optim import Schedule
from landmark.training.loop.step import TrainStep
from landmark.training.loop.validation import validate
from tests.training.loop.test_step import SingleRank, batch_of, recipe

NAMES = ["resnet18", "mobilenet_v3_small", "timm/resnet10t", "timm/test_vit"]
FAMILIES = [
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "regnet_y_400mf",
    "swin_t",
    "vit_b_32",
]


def trained(name: str, *, checkpointing: bool, accumulate: int = 1) -> tuple[TrainStep, float]:
    run = recipe(
        model=ModelConfig(backbone=name),
        compute=ComputeConfig(amp="off", gradient_checkpointing=checkpointing, accumulate=accumulate),
        optimizer=OptimizerConfig(name="sgd", lr=0.01),
    )
    run = dataclasses.replace(run, loader=dataclasses.replace(run.loader, image_size=32))
    torch.manual_seed(0)
    model = build_model(run.model, classes=4, image_size=32)
    step = TrainStep(model, run, model_info(name), SingleRank())
    schedule = Schedule(
        step.optimizer, run.schedule, optimizer_config=run.optimizer, steps_per_epoch=10, epochs=10, mode="max"
    )
    for number in range(2):
        torch.manual_seed(number)  # as RunState.reseed does, for dropout and stochastic depth
        step.run(enlarged(number), schedule, number, 8)
    return step, validate(step.evaluated, [enlarged(9)], step.preprocess, SingleRank(), 4)["val_loss"]


def enlarged(number: int):
    batch = batch_of(number)
    return dataclasses.replace(batch, images=batch.images.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("name", NAMES)
def test_results_equal_training_without_checkpointing_bitwise(name):
    plain, checkpointing = (trained(name, checkpointing=checkpointing, accumulate=2) for checkpointing in (False, True))
    assert plain[1] == checkpointing[1]
    state = checkpointing[0].model.state_dict()
    for key, value in plain[0].model.state_dict().items():
        assert torch.equal(value, state[key]), key


def saved_bytes(model: nn.Module) -> int:
    """Return the bytes that a forward pass saves for the backward pass."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(2, 3, 64, 64))
    del output
    return sum(size for place, size in saved.items() if place not in weights)


def test_activations_of_blocks_are_not_saved():
    torch.manual_seed(0)
    model = torchvision.models.resnet18().train()
    assert len(blocks(model)) == 8
    before = saved_bytes(model)
    checkpoint_blocks(model, "resnet18")
    assert saved_bytes(model) < 0.6 * before  # most of the rest are activations of the stem


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "reference_mlp"])
def test_a_model_without_blocks_is_named(name):
    model = build_model(ModelConfig(backbone=name), classes=4, image_size=64)
    with pytest.raises(UserError, match=rf"compute.gradient_checkpointing is true, but {name} has no blocks"):
        checkpoint_blocks(model, name)


@pytest.mark.parametrize("name", FAMILIES)
def test_backbones_of_all_families_have_blocks(name):
    model = build_skeleton(ModelConfig(backbone=name), classes=4, image_size=224)
    found = blocks(model)
    assert len(found) >= 4
    inside = [{id(weight) for weight in block.parameters()} for block in found]
    assert sum(map(len, inside)) == len(set().union(*inside))  # no block is inside another
    weights = sum(weight.numel() for block in found for weight in block.parameters())
    # The rest are the stem and the classifier.
    assert weights > 0.8 * sum(weight.numel() for weight in model.parameters()) - 4e6


def test_compiling_and_checkpointing_are_mutually_exclusive():
    with pytest.raises(ValueError, match="compute.gradient_checkpointing and compute.compile are both true"):
        ComputeConfig(compile=True, gradient_checkpointing=True)
