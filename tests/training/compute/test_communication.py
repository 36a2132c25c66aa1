"""Tests options of communication between ranks: SyncBatchNorm, bf16 gradients, torch.compile with DDP."""

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch._inductor import config as inductor
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import StochasticDepth

from landmark.config import ComputeConfig, ModelConfig, Recipe, TrainConfig, TuneConfig, UserError, WorkersConfig
from landmark.data.loading.loader import Batch
from landmark.models import build_model
from landmark.training.compute.communication import converted
from landmark.training.distributed.backends import Ddp
from tests.training.loop.test_step import SingleRank, batch_of, recipe, step_of, tiny


class GlooRank(SingleRank):
    """One of several ranks over Gloo."""

    world_size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def prepare(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=False)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        return Ddp().all_reduce(values)


@pytest.mark.parametrize(
    ("name", "norms"), [("resnet18", 20), ("timm/resnet10t", 14), ("timm/mobilenetv3_small_050", 34)]
)
def test_converted_batch_norms_keep_names_values_and_activations(name, norms):
    model = build_model(ModelConfig(backbone=name), classes=3, image_size=32)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    activations = {key: str(module.act) for key, module in model.named_modules() if hasattr(module, "act")}
    changed = converted(model, name)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in changed.modules()) == norms
    assert not any(type(module) is nn.BatchNorm2d for module in changed.modules())
    assert list(changed.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in changed.state_dict().items())
    converted_activations = {key: str(module.act) for key, module in changed.named_modules() if hasattr(module, "act")}
    assert converted_activations == activations


def test_sync_batchnorm_on_cpus_is_refused():
    with pytest.raises(UserError, match="compute.sync_batchnorm is true, but the workers train on CPUs"):
        step_of(tiny(), recipe(compute=ComputeConfig(amp="off", sync_batchnorm=True)))


@pytest.mark.parametrize("compute", [{"sync_batchnorm": True}, {"ddp_comm_hook": "bf16_compress"}])
@pytest.mark.parametrize(
    ("workers", "message"),
    [
        (WorkersConfig(), "workers.count is 1; remove it, or use several workers"),
        (WorkersConfig(count=2, backend="horovod"), "workers.backend is horovod; set workers.backend to ddp"),
    ],
)
def test_communication_options_require_several_ddp_workers(compute, workers, message):
    config = ComputeConfig(**compute)
    with pytest.raises(ValueError, match=message):
        TrainConfig(dataset="none", compute=config, workers=workers)
    with pytest.raises(ValueError, match=message):
        TuneConfig(dataset="none", space="demo", recipe=Recipe(compute=config), workers=workers)
    TrainConfig(dataset="none", compute=config, workers=WorkersConfig(count="1:4"))


class Residual(nn.Module):
    """A residual branch with stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = StochasticDepth(0.2, "row")

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + self.drop(self.branch(maps))


class StochasticDepthModel(nn.Module):
    """A model with batch norms and stochastic depth, for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Residual(), Residual())
        self.last = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(self.stem(images)).mean((2, 3)))


SHAPES = [(4, 16), (3, 16), (4, 24), (3, 24)]
"""Number of images per rank and image size in each step, as in the last steps of epochs and progressive resizing."""
PLAIN = ComputeConfig(amp="off")
RUNS = {
    "plain": PLAIN,
    "bf16": dataclasses.replace(PLAIN, ddp_comm_hook="bf16_compress"),
    "checkpointed": dataclasses.replace(PLAIN, gradient_checkpointing=True, accumulate=2),
    "accumulated": dataclasses.replace(PLAIN, accumulate=2),
}


def batch_of_shape(number: int, rank: int, rows: int, size: int) -> Batch:
    batch = batch_of(10 * number + rank, rows=rows)
    images = np.ascontiguousarray(np.tile(batch.images, (1, 2, 2, 1))[:, :size, :size])
    return dataclasses.replace(batch, images=images)


def _rank(rank: int, port: int, folder: str, runs: dict[str, ComputeConfig]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    inductor.fallback_random, inductor.compile_threads = True, 1  # the same random numbers as without compiling
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for name, compute in runs.items():
        torch.manual_seed(0)
        step, schedule = step_of(StochasticDepthModel(), recipe(compute=compute), GlooRank(rank))
        for number, (rows, size) in enumerate(SHAPES):
            torch.manual_seed(100 * number + rank)
            step.run(batch_of_shape(number, rank, rows, size), schedule, number, 8)
        torch.save((step.model.state_dict(), step.take_totals().loss), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


def run_ranks(folder: Path, runs: dict[str, ComputeConfig]) -> dict[tuple[str, int], Any]:
    """Return the weights and the loss of each run on each of two ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(folder), runs), nprocs=2)
    return {(name, rank): torch.load(folder / f"{name}-{rank}.pt") for name in runs for rank in (0, 1)}


def assert_close_to(found: dict[tuple[str, int], Any], name: str, reference: str, tolerance: float) -> None:
    for rank in (0, 1):
        (weights, loss), (expected, expected_loss) = found[name, rank], found[reference, rank]
        assert list(weights) == list(expected)
        for key, value in weights.items():
            torch.testing.assert_close(value, expected[key], rtol=tolerance, atol=tolerance / 10)
        assert loss == pytest.approx(expected_loss, rel=tolerance)
    (weights, _), (others, _) = found[name, 0], found[name, 1]
    assert all(torch.equal(value, others[key]) for key, value in weights.items() if "running" not in key)


def test_two_ranks_train_equally_with_and_without_the_options(tmp_path):
    found = run_ranks(tmp_path, RUNS)
    assert_close_to(found, "bf16", "plain", 2e-2)
    assert_close_to(found, "checkpointed", "accumulated", 0.0)
    plain, compressed = found["plain", 0][0], found["bf16", 0][0]
    assert any(not torch.equal(value, plain[key]) for key, value in compressed.items())


@pytest.mark.timeout(900)
def test_compiled_ranks_accept_changing_batch_and_image_sizes(tmp_path):
    found = run_ranks(tmp_path, {"plain": PLAIN, "compiled": dataclasses.replace(PLAIN, compile=True)})
    assert_close_to(found, "compiled", "plain", 1e-4)
