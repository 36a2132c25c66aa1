"""Tests optimizers and learning rate schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landmark.config import ModelConfig, OptimizerConfig, ScheduleConfig
from landmark.models import build_model
from landmark.training.compute.optim import Schedule, build_optimizer, lr_factor


def lr_factors(config: ScheduleConfig, steps: int = 10, epochs: int = 10) -> list[float]:
    return [lr_factor(config, step, steps, epochs) for step in range(steps * epochs)]


def test_one_cycle_rises_to_the_peak_and_falls_to_almost_zero():
    found = lr_factors(ScheduleConfig(name="one_cycle", peak_at=0.3))
    assert found[0] == pytest.approx(1 / 25)
    assert max(found) == pytest.approx(1.0, abs=1e-3)
    assert found.index(max(found)) in (29, 30)
    assert found[-1] == pytest.approx(1e-4)


def test_step_cosine_and_constant_with_warm_up():
    step = lr_factors(ScheduleConfig(name="step", step_epochs=3, factor=0.5))
    assert [step[0], step[30], step[60], step[99]] == [1.0, 0.5, 0.25, 0.125]
    cosine = lr_factors(ScheduleConfig(name="cosine", warmup_epochs=1))
    assert cosine[0] == pytest.approx(1 / 11) and cosine[10] == pytest.approx(1.0)
    assert cosine[55] == pytest.approx(0.5, abs=0.02) and cosine[-1] < 0.001
    assert set(lr_factors(ScheduleConfig(name="constant"))) == {1.0}


@given(st.sampled_from(["constant", "step", "cosine", "one_cycle", "plateau"]), st.integers(1, 20), st.integers(1, 8))
def test_lr_factors_stay_between_zero_and_one(name, steps, epochs):
    assert all(0 <= factor <= 1 for factor in lr_factors(ScheduleConfig(name=name, warmup_epochs=0.5), steps, epochs))


def test_plateau_lowers_the_lr_after_patience_and_can_be_restored():
    def schedule() -> Schedule:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        config = ScheduleConfig(name="plateau", patience=1, factor=0.1)
        return Schedule(
            optimizer, config, optimizer_config=OptimizerConfig(lr=1.0), steps_per_epoch=1, epochs=99, mode="min"
        )

    first = schedule()
    for loss in (1.0, 0.5, 0.6):
        first.epoch_end(loss)
    second = schedule()
    second.load_state_dict(first.state_dict())
    assert second.set_lr(3, 64) == 1.0
    second.epoch_end(0.7)
    assert second.set_lr(4, 64) == pytest.approx(0.1)
    second.epoch_end(0.1)
    assert second.set_lr(5, 64) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_norms_and_biases_have_no_weight_decay(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(model, OptimizerConfig(name=name, weight_decay=0.1), 64)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in model.parameters()] == [0.1, 0, 0, 0, 0.1, 0]


def test_defaults_follow_keras_and_frozen_weights_are_excluded():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig(name="rmsprop"), 64)
    assert (optimizer.defaults["lr"], optimizer.defaults["alpha"], optimizer.defaults["eps"]) == (0.001, 0.9, 1e-7)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
    assert OptimizerConfig(name="adam").peak_lr(64) == 0.001
    assert OptimizerConfig(name="sgd", lr=0.3).peak_lr(64) == 0.3


def test_layer_decay_lowers_the_lr_towards_the_input():
    model = build_model(ModelConfig(backbone="resnet18"), classes=3, image_size=32)
    config = OptimizerConfig(name="sgd", lr=1.0, layer_decay=0.5, weight_decay=0.1)
    optimizer = build_optimizer(model, config, 1)
    schedule = Schedule(
        optimizer,
        ScheduleConfig(name="constant"),
        optimizer_config=config,
        steps_per_epoch=1,
        epochs=1,
        mode="max",
    )
    assert schedule.set_lr(0, 1) == 1.0
    lr_and_decay = {
        p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert len(lr_and_decay) == len(list(model.parameters()))
    assert lr_and_decay[model.fc.weight] == (1.0, 0.1) and lr_and_decay[model.fc.bias] == (1.0, 0.0)
    assert lr_and_decay[model.layer4[0].conv1.weight] == (0.5, 0.1)
    assert lr_and_decay[model.layer1[0].bn1.bias] == (1 / 16, 0.0)
    assert lr_and_decay[model.conv1.weight] == (1 / 32, 0.1)


@given(st.sampled_from(["sgd", "rmsprop", "adam", "adamw"]), st.integers(1, 4096), st.integers(1, 4096))
def test_lr_scales_linearly_with_batch_for_sgd_else_by_its_root(name, batch, base):
    config = OptimizerConfig(name=name, lr=0.1, base_batch_size=base)
    assert config.peak_lr(batch) == pytest.approx(0.1 * (batch / base) ** (1.0 if name == "sgd" else 0.5))
    assert OptimizerConfig(name=name, lr=0.1).peak_lr(batch) == 0.1
