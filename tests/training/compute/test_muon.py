"""Tests Muon against torch's for matrices, and against AdamW for the other weights."""

import math

import pytest
import torch
from torch import nn

from landmark.config import ModelConfig, OptimizerConfig
from landmark.models import build_model
from landmark.training.compute.muon import iterated, iterated_by_gram, orthogonalized
from landmark.training.compute.optim import build_optimizer, inner_matrices, load_optimizer


@pytest.mark.parametrize("shape", [(32, 32), (16, 144), (144, 16)])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, min(shape)))[0] for size in shape)
    values = torch.logspace(0, -1.5, min(shape))
    matrices = torch.stack([left * values @ right.T, 1000 * left * values.flip(0) @ right.T])
    found = orthogonalized(matrices)
    for matrix in found:
        rotated = left.T @ matrix @ right
        diagonal = rotated.diagonal()
        assert diagonal.min() > 0.6 and diagonal.max() < 1.3
        assert (rotated - diagonal.diag()).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(8, 512), (64, 576)])
@pytest.mark.parametrize(("iterate", "dtype"), [(iterated, torch.bfloat16), (iterated_by_gram, torch.float32)])
def test_matrices_of_low_rank_have_no_large_singular_values(shape, iterate, dtype) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape[0], 3) @ torch.randn(3, shape[1]) + 1e-3 * torch.randn(shape)
    found = iterate((matrix / matrix.norm())[None].to(dtype)).float()
    values = torch.linalg.svdvals(found[0])
    assert values.max() < 1.35 and values[:3].min() > 0.6


def test_matrices_are_updated_as_by_torch() -> None:
    """torch computes the iteration in bf16, so updates are compared up to a few percent of their size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 5))
    ours = build_optimizer(model, OptimizerConfig(name="muon", weight_decay=0.1, lr=0.01), 32)
    weight = model[2].weight
    twin = nn.Parameter(weight.detach().clone())
    theirs = torch.optim.Muon([twin], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    assert inner_matrices(model) == {"2.weight"}
    start = weight.detach().clone()
    for _ in range(4):
        loss = model(torch.randn(16, 20)).square().mean()
        ours.zero_grad()
        loss.backward()
        twin.grad = weight.grad.clone()
        ours.step()
        theirs.step()
    moved = (weight - start).norm()
    assert (weight - twin).norm() < 0.05 * moved
    # The update has the root mean square of AdamW's: about 0.2 times the learning rate per step.
    assert 0.5 < (moved / math.sqrt(weight.numel()) / (4 * 0.2 * 0.01)).item() < 1.5


def test_other_weights_are_updated_as_by_adamw() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone="resnet18"), classes=5, image_size=32)
    twin = build_model(ModelConfig(backbone="resnet18"), classes=5, image_size=32)
    twin.load_state_dict(model.state_dict())
    inner = inner_matrices(model)
    assert "conv1.weight" not in inner and "fc.weight" not in inner and len(inner) == 19
    others = [parameter for name, parameter in twin.named_parameters() if name not in inner]
    ours = build_optimizer(model, OptimizerConfig(name="muon", weight_decay=0.05), 32)
    decays = [0.05 if parameter.ndim > 1 else 0.0 for parameter in others]
    groups = [
        {"params": [each], "weight_decay": decay, "lr": 0.002} for each, decay in zip(others, decays, strict=True)
    ]
    theirs = torch.optim.AdamW(groups, lr=0.002)
    for _ in range(3):
        ours.zero_grad()
        model(torch.randn(4, 3, 32, 32)).square().mean().backward()
        for (name, weight), (_, same) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
            if name not in inner:
                same.grad = weight.grad.clone()
        ours.step()
        theirs.step()
    for (name, weight), (_, same) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if name not in inner:
            torch.testing.assert_close(weight, same, msg=name)


def test_frozen_weights_tokens_and_depthwise_kernels_are_no_matrices() -> None:
    model = build_model(ModelConfig(backbone="timm/vit_tiny_patch16_224"), classes=5, image_size=224)
    inner = inner_matrices(model)
    assert not {"cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight"} & inner
    assert "blocks.0.attn.qkv.weight" in inner
    efficient = build_model(ModelConfig(backbone="timm/tf_efficientnet_lite0"), classes=5, image_size=64)
    shapes = {name: parameter.shape for name, parameter in efficient.named_parameters()}
    assert all(shapes[name][1] > 1 for name in inner_matrices(efficient))


def test_a_restored_optimizer_takes_the_same_step() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone="resnet18"), classes=5, image_size=32).to(
        memory_format=torch.channels_last
    )
    config = OptimizerConfig(name="muon", weight_decay=0.05)
    first = build_optimizer(model, config, 32)

    def step(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        torch.manual_seed(1)
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        return [weight.detach().clone() for weight in model.parameters()]

    step(first)
    weights, state = {name: value.clone() for name, value in model.state_dict().items()}, first.state_dict()
    kept = {
        "state": {key: dict(values) for key, values in state["state"].items()},
        "param_groups": state["param_groups"],
    }
    kept["state"] = {
        key: {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        for key, values in kept["state"].items()
    }
    expected = step(first)
    model.load_state_dict(weights)
    second = build_optimizer(model, config, 32)
    load_optimizer(second, kept)
    for ours, theirs in zip(step(second), expected, strict=True):
        assert torch.equal(ours, theirs)
