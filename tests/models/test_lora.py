"""Tests LoRA: low-rank updates of every family, stored as plain weights, with an exact resume."""

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from landmark.checkpoints.format import load_model
from landmark.config import (
    EmaConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TrainConfig,
    UserError,
)
from landmark.data.dataset import PackedDataset
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.models import build_model, build_skeleton, count_parameters, make_trainable, plain_state
from landmark.models.lora import LowRank
from landmark.models.registry import head_tensors
from landmark.storage import locate
from landmark.training.compute.ema import ModelEma
from landmark.training.compute.gradient_checkpointing import blocks
from landmark.training.run import run_training
from tests.support.packed import write_packed

FAMILIES = (
    "resnet18",
    "convnext_tiny",
    "vit_b_32",
    "swin_t",
    "timm/vit_tiny_patch16_224",
    "timm/tf_efficientnet_lite0",
)


def trainable(config: ModelConfig, classes: int, image_size: int) -> nn.Module:
    model = build_model(config, classes=classes, image_size=image_size)
    make_trainable(model, config, classes=classes, image_size=image_size)
    return model.eval()


@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_model_starts_unchanged_and_its_plain_state_has_the_trained_updates(backbone: str) -> None:
    torch.manual_seed(0)
    config, size = ModelConfig(backbone=backbone, tuning="lora", lora_rank=4), 224 if "vit" in backbone else 64
    plain = build_model(dataclasses.replace(config, tuning="all", lora_rank=None), classes=3, image_size=size).eval()
    model = trainable(config, 3, size)
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys  # those of the updates and of the weights that have one
    for name, module in model.named_modules():
        for child in getattr(module, "parametrizations", {}).items() if name else ():
            weight, steps = child
            with torch.no_grad():
                steps.original.copy_(plain.get_parameter(f"{name}.{weight}"))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images))
    start = plain_state(model)
    assert start.keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in start.items())
    for module in model.modules():
        if isinstance(module, LowRank):
            nn.init.normal_(module.up, std=0.02)
    plain.load_state_dict(plain_state(model))
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images))
    head = head_tensors(config, 3, size)
    changes = {name: (tensor - start[name]).double() for name, tensor in plain.state_dict().items()}
    changed = [name for name, change in changes.items() if change.any()]
    assert changed and not head & set(changed)
    for name in changed[:8]:
        assert torch.linalg.matrix_rank(changes[name].flatten(1), rtol=1e-3) == 4, name


@pytest.mark.parametrize("backbone", FAMILIES)
def test_only_updates_and_the_classifier_are_trained(backbone: str) -> None:
    config = ModelConfig(backbone=backbone, tuning="lora")
    model = build_skeleton(config, classes=3, image_size=224)
    updates = {
        id(weight) for module in model.modules() if isinstance(module, LowRank) for weight in module.parameters()
    }
    head = head_tensors(config, 3, 224)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == head | {name for name, weight in model.named_parameters() if id(weight) in updates}
    counts = count_parameters(config, classes=3, image_size=224)
    assert updates and counts.trainable < 0.2 * counts.frozen


def test_frozen_stages_have_no_updates() -> None:
    config = ModelConfig(backbone="resnet18", tuning="lora", freeze_stages=3)
    model = build_skeleton(config, classes=3, image_size=64)
    assert not any(isinstance(module, LowRank) for module in model.layer1.modules())
    assert any(isinstance(module, LowRank) for module in model.layer4.modules())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("lora"), {"train": [40, 24], "val": [21], "test": [20]}, classes=3)


@pytest.mark.parametrize("ema", [EmaConfig(), EmaConfig(decay=0.9), EmaConfig(decay=0.9, start_weight=0.5)])
def test_a_run_stores_plain_weights_and_resumes_exactly(dataset: PackedDataset, ema: EmaConfig, tmp_path: Path) -> None:
    source = build_model(ModelConfig(backbone="shufflenet_v2_x0_5"), classes=3, image_size=32)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "start.safetensors")
    config = TrainConfig(
        dataset=dataset.location.uri,
        output=str(tmp_path),
        name="once",
        epochs=2,
        model=ModelConfig(
            backbone="shufflenet_v2_x0_5",
            weights=str(tmp_path / "start.safetensors"),
            tuning="lora",
            freeze_norm_stats=True,
        ),
        probe=ProbeConfig(head="logistic"),
        optimizer=OptimizerConfig(name="adamw", lr=0.003),
        schedule=ScheduleConfig(name="constant"),
        ema=ema,
        loader=LoaderConfig(image_size=32, batch_size=16, decode_threads=1),
        tensorboard=False,
    )
    once = run_training(config)
    run_training(dataclasses.replace(config, name="twice", epochs=1))
    twice = run_training(dataclasses.replace(config, name="twice", resume=True))
    first, second = (
        safetensors.torch.load_file(Path(run.run) / run.last_checkpoint / "model.safetensors") for run in (once, twice)
    )
    assert first.keys() == source.state_dict().keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], tensor) for name, tensor in source.state_dict().items() if tensor.ndim == 4)
    checkpoint = locate(once.run) / once.best_checkpoint
    found = evaluate_checkpoint(checkpoint, dataset, "val", Settings(quiet=True))
    assert found.accumulator.top_k(1) == pytest.approx(once.best["val_top1"])
    model, _ = load_model(checkpoint)
    assert not any(isinstance(module, LowRank) for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 4}, "model.lora_rank is set, but model.tuning is all"),
        ({"lora_rank": 0, "tuning": "lora"}, "model.lora_rank is 0; expected 1 or more"),
        ({"tuning": "lora", "freeze_backbone": True}, "model.tuning is lora, but model.freeze_backbone"),
    ],
)
def test_wrong_options_are_one_line(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


def test_the_mean_with_the_start_is_the_mean_of_the_weights() -> None:
    """The update is a product, so the mean of both factors would be another one."""
    torch.manual_seed(0)
    model = trainable(ModelConfig(backbone="resnet18", tuning="lora"), 3, 32)
    start = {name: tensor.clone() for name, tensor in plain_state(model).items()}
    average = ModelEma(model, EmaConfig(decay=0.5, warmup=False, start_weight=0.25))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRank):
                nn.init.normal_(module.up)
                nn.init.normal_(module.down)
        model.fc.bias += 1
    for step in range(200):  # until the average is the model
        average.update(step + 1)
    trained = plain_state(model)
    for name, tensor in plain_state(average.model).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.25 * start[name] + 0.75 * trained[name], rtol=1e-4, atol=1e-4)


def test_the_names_keep_their_order_so_that_stored_features_are_found() -> None:
    config = ModelConfig(backbone="swin_t", tuning="lora")
    plain = build_model(dataclasses.replace(config, tuning="all"), classes=3, image_size=64)
    assert list(plain_state(trainable(config, 3, 64))) == list(plain.state_dict())


def test_a_rank_that_no_weight_has_is_one_line() -> None:
    with pytest.raises(UserError, match="model.lora_rank is 512, but no weight has 1024 rows and columns; lower it"):
        trainable(ModelConfig(backbone="resnet18", tuning="lora", lora_rank=512), 3, 32)


def test_only_blocks_are_recomputed() -> None:
    model = trainable(ModelConfig(backbone="resnet18", tuning="lora"), 3, 32)
    assert [type(block).__name__ for block in blocks(model)] == ["BasicBlock"] * 8
