"""Tests averages with start weights: their definition, their checkpoints, and what the options require."""

import copy

import pytest
import torch
from torch import nn

from landmark.config import EmaConfig, ModelConfig, ProbeConfig, Recipe
from landmark.training.compute.ema import ModelEma


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def moved(source: nn.Module, average: ModelEma, steps: int, first: int = 1) -> None:
    for step in range(first, first + steps):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(torch.full_like(parameter, 0.1 * step))
        average.update(step)


def test_the_model_is_the_weighted_mean_of_average_and_start() -> None:
    source = network()
    start = copy.deepcopy(source.state_dict())
    plain = ModelEma(source, EmaConfig(decay=0.9))
    mixed = ModelEma(source, EmaConfig(decay=0.9, start_weight=0.25))
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(0.1)
        plain.update(step)
        mixed.update(step)
        mixed.model  # noqa: B018 - reading it must not change the average
    for name, weight in mixed.model.named_parameters():
        expected = 0.25 * start[name] + 0.75 * dict(plain.model.named_parameters())[name]
        torch.testing.assert_close(weight, expected)


def test_frozen_weights_and_statistics_are_the_models() -> None:
    source = network()
    source[0].requires_grad_(False)
    average = ModelEma(source, EmaConfig(decay=0.5, start_weight=0.5))
    moved(source[2], average, 3)
    source[1].running_mean.fill_(7.0)
    assert torch.equal(average.model[0].weight, source[0].weight)
    assert torch.equal(average.model[1].running_mean, source[1].running_mean)


def test_a_restored_average_continues_exactly() -> None:
    config = EmaConfig(decay=0.9, start_weight=0.5)
    source = network()
    average = ModelEma(source, config)
    moved(source, average, 3)
    again = network()
    again.load_state_dict(source.state_dict())
    restored = ModelEma(again, config)
    restored.load()  # as a resumed run does, from weights that are not the start
    restored.load_state(copy.deepcopy(average.state()))
    moved(source, average, 2, first=4)
    moved(again, restored, 2, first=4)
    for one, other in zip(average.model.parameters(), restored.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_start_is_that_of_the_last_restart() -> None:
    """Fine-tuning that starts at a probe restarts the average with the probe's classifier."""
    source = network()
    average = ModelEma(source, EmaConfig(decay=0.9, start_weight=0.5))
    with torch.no_grad():
        source[2].weight.fill_(3.0)
    average.load()
    assert torch.equal(average.model[2].weight, source[2].weight)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ema": {"start_weight": 0.5}}, "ema.start_weight is set without ema.decay"),
        ({"ema": {"decay": 0.9, "start_weight": 1.0}}, "ema.start_weight is 1.0; expected 0 to below 1"),
        (
            {"ema": {"decay": 0.9, "start_weight": 0.5}},
            "the run starts at a random classifier; set model.weights and probe.head",
        ),
        (
            {
                "ema": {"decay": 0.9, "start_weight": 0.5},
                "model": {"weights": "w.pt"},
                "probe": {"head": "ridge"},
            },
            "batch norm statistics do not fit averaged weights; set model.freeze_norm_stats",
        ),
    ],
)
def test_what_start_weights_require_is_named(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(
            ema=EmaConfig(**values["ema"]),
            model=ModelConfig(**values.get("model", {})),
            probe=ProbeConfig(**values.get("probe", {})),
        )
