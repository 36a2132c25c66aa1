"""Backends: how the ranks of a run average gradients and add up figures. DDP is here, Horovod in a module of its own."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, Protocol

import ray.train.torch
import torch
from torch import nn

from landmark.config import ComputeConfig, UserError, WorkersConfig
from landmark.training.gloo import TorchOnNodes

# torch 2.14 renamed them; setup.cfg allows torch from 2.9 on.
_ALL_GATHER: Any = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
_REDUCE_SCATTER: Any = (
    getattr(torch.distributed, "reduce_scatter_single", None) or torch.distributed.reduce_scatter_tensor
)


class Backend(Protocol):
    """What the session of a rank needs of its backend."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model so wrapped that `backward` averages gradients over the ranks: all begin with rank 0's weights.

        The wrapper has the model as `module`, and `no_sync`, the context in which gradients stay on the rank.
        """
        ...

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        ...

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks, (ranks, …)."""
        ...

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of values[rank], of values (ranks, …)."""
        ...


class Ddp:
    """PyTorch's own: DistributedDataParallel over Gloo, or NCCL on GPUs; Ray Train makes the process group."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap the model in DDP; running statistics are averaged once an epoch, not broadcast at every step."""
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        return ray.train.torch.prepare_model(model, move_to_device=False, parallel_strategy_kwargs=options)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks, (ranks, …)."""
        ranks = torch.distributed.get_world_size()
        gathered = values.new_empty(ranks * values.numel())
        _ALL_GATHER(gathered, values.contiguous().view(-1))
        return gathered.view(ranks, *values.shape)

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of values[rank], of values (ranks, …)."""
        own = values.new_empty(values[0].numel())
        _REDUCE_SCATTER(own, values.contiguous().view(-1))
        return own.view(values.shape[1:])


def join_backend(workers: WorkersConfig, device: torch.device) -> Backend:
    """Return the backend of this rank, in a worker of Ray Train; raises UserError where it does not run there."""
    if workers.backend == "horovod":
        from landmark.training.horovod import Horovod

        return Horovod(device)
    return Ddp()


def backend_config(workers: WorkersConfig) -> ray.train.torch.TorchConfig:
    """Return by what Ray Train brings the workers together."""
    if workers.backend == "horovod":
        from landmark.training.horovod import HorovodConfig

        return HorovodConfig()
    return TorchOnNodes()


def check_backend(workers: WorkersConfig, compute: ComputeConfig) -> None:
    """Raise UserError, saying how to mend it, unless workers.backend is there and can do what is asked; loads nothing."""
    if workers.backend != "horovod" or workers.in_process:
        return
    if compute.deterministic:
        raise UserError(
            "compute.deterministic asks for the same bits in every run, but horovod adds up gradients in the order in which "
            "they happen to come; set workers.backend to ddp"
        )
    found = importlib.util.find_spec("horovod")
    folders = list(found.submodule_search_locations or []) if found is not None else []
    if not any(Path(folder, "torch").glob("mpi_lib_v2*.so") for folder in folders):
        built = "is not installed" if found is None else "was built without PyTorch"
        raise UserError(
            f"workers.backend is horovod, but Horovod {built} for {sys.executable}; "
            f"run: bash scripts/install-horovod.sh {sys.executable} (docs/horovod.md), or set workers.backend to ddp"
        )
