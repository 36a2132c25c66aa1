"""Optimizers and schedules: the rates that papers and configs promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landmark.config import ModelConfig, OptimizerConfig, ScheduleConfig
from landmark.models import build_model
from landmark.training.compute.optim import Schedule, build_optimizer, lr_factor


def rates(config: ScheduleConfig, steps: int = 10, epochs: int = 10) -> list[float]:
    return [lr_factor(config, step, steps, epochs) for step in range(steps * epochs)]


def test_one_cycle_rises_to_the_peak_and_falls_to_almost_nothing():
    found = rates(ScheduleConfig(name="one_cycle", peak_at=0.3))
    assert found[0] == pytest.approx(1 / 25)
    assert max(found) == pytest.approx(1.0, abs=1e-3)
    assert found.index(max(found)) in (29, 30)
    assert found[-1] == pytest.approx(1e-4)


def test_step_cosine_and_constant_with_warm_up():
    step = rates(ScheduleConfig(name="step", step_epochs=3, factor=0.5))
    assert [step[0], step[30], step[60], step[99]] == [1.0, 0.5, 0.25, 0.125]
    cosine = rates(ScheduleConfig(name="cosine", warmup_epochs=1))
    assert cosine[0] == pytest.approx(1 / 11) and cosine[10] == pytest.approx(1.0)
    assert cosine[55] == pytest.approx(0.5, abs=0.02) and cosine[-1] < 0.001
    assert set(rates(ScheduleConfig(name="constant"))) == {1.0}


@given(st.sampled_from(["constant", "step", "cosine", "one_cycle", "plateau"]), st.integers(1, 20), st.integers(1, 8))
def test_rates_stay_between_nothing_and_the_peak(name, steps, epochs):
    assert all(0 <= rate <= 1 for rate in rates(ScheduleConfig(name=name, warmup_epochs=0.5), steps, epochs))


def test_plateau_lowers_the_rate_after_patience_and_survives_a_checkpoint():
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
def test_norms_and_biases_are_not_decayed(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(model, OptimizerConfig(name=name, weight_decay=0.1), 64)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in model.parameters()] == [0.1, 0, 0, 0, 0.1, 0]


def test_keras_rates_are_the_defaults_and_frozen_weights_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig(name="rmsprop"), 64)
    assert (optimizer.defaults["lr"], optimizer.defaults["alpha"], optimizer.defaults["eps"]) == (0.001, 0.9, 1e-7)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
    assert OptimizerConfig(name="adam").peak_lr(64) == 0.001
    assert OptimizerConfig(name="sgd", lr=0.3).peak_lr(64) == 0.3


def test_a_stages_rate_falls_with_its_distance_from_the_classifier():
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
    rate = {p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    assert rate[model.fc.weight] == (1.0, 0.1) and rate[model.fc.bias] == (1.0, 0.0)
    assert rate[model.layer4[0].conv1.weight] == (0.5, 0.1)
    assert rate[model.layer1[0].bn1.bias] == (1 / 16, 0.0)
    assert rate[model.conv1.weight] == (1 / 32, 0.1)


@given(st.sampled_from(["sgd", "rmsprop", "adam", "adamw"]), st.integers(1, 4096), st.integers(1, 4096))
def test_the_rate_follows_the_batch_linearly_for_sgd_and_by_its_root_for_others(name, batch, base):
    config = OptimizerConfig(name=name, lr=0.1, base_batch_size=base)
    assert config.peak_lr(batch) == pytest.approx(0.1 * (batch / base) ** (1.0 if name == "sgd" else 0.5))
    assert OptimizerConfig(name=name, lr=0.1).peak_lr(batch) == 0.1
