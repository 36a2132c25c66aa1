"""Tests micro-batches that fit into the memory: the same on all ranks, and no trace of the measurement."""

import copy

import pytest
import torch
from torch import nn

from landmark.config import ComputeConfig, LoaderConfig, ModelConfig, Recipe
from landmark.models import ModelInfo
from landmark.training.compute.micro_batches import in_fitting_parts, measured_parts
from landmark.training.loop.step import TrainStep
from tests.support.ranks import Rank, World

CPU = torch.device("cpu")
INFO = ModelInfo(name="limited", source="reference", image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)


class Limited(nn.Module):
    """A model with batch norm that runs out of memory above a number of images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.most = most
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return self.fc(self.body(images))


@pytest.mark.parametrize(("most", "expected"), [(100, 1), (16, 1), (15, 2), (5, 4), (2, 8)])
def test_the_measurement_finds_the_parts_and_leaves_no_trace(most: int, expected: int) -> None:
    model = Limited(most).train()
    before = copy.deepcopy(model.state_dict())
    assert measured_parts(model, lambda part: model(part).square().mean(), torch.rand(16, 3, 8, 8), 1) == expected
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_image_that_does_not_fit_is_an_error() -> None:
    calls: list[int] = []

    def compute(parts: int) -> None:
        calls.append(parts)
        raise MemoryError

    with pytest.raises(MemoryError):
        in_fitting_parts(compute, 3, 12, lambda *_: None, CPU)
    assert calls == [3, 6, 12]


def test_all_ranks_use_the_parts_of_the_rank_with_the_least_memory() -> None:
    recipe = Recipe(
        model=ModelConfig(backbone="resnet18"),
        compute=ComputeConfig(amp="off"),
        loader=LoaderConfig(batch_size=24, image_size=16),
    )

    def parts(rank: Rank) -> int:
        step = TrainStep(Limited(8 if rank.rank != 1 else 2), recipe, INFO, rank)  # type: ignore[arg-type]
        lines: list[str] = []
        step.show = lines.append
        step._measure_parts()
        assert lines == [
            "note: a batch of 8 images per worker does not fit into the GPU memory; continuing with compute.accumulate 4, "
            "with the same batch size"
        ]
        return step.accumulate

    assert World(3).run(parts) == [4, 4, 4]
