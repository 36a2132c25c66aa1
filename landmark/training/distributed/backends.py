"""Backends that average gradients and sum values over the ranks of a run: DDP here, Horovod in its own module."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, Protocol

import ray.train.torch
import torch
from torch import nn

from landmark.config import ComputeConfig, UserError, WorkersConfig
from landmark.training.distributed.gloo import TorchOnNodes

# Older names, before torch 2.14. setup.cfg allows torch from 2.9 on.
_ALL_GATHER: Any = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
_REDUCE_SCATTER: Any = (
    getattr(torch.distributed, "reduce_scatter_single", None) or torch.distributed.reduce_scatter_tensor
)


class Backend(Protocol):
    """Operations that a rank's session requires of its backend."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap the model so that `backward` averages gradients over the ranks. All ranks start with rank 0's weights.

        The wrapper has the model as `module`, and the context `no_sync`, in which gradients stay on the rank.
        """
        ...

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        ...

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks, (ranks, …)."""
        ...

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of values[rank], given values (ranks, …)."""
        ...


class Ddp:
    """PyTorch's DistributedDataParallel over Gloo, or NCCL on GPUs. Ray Train creates the process group."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap the model in DDP. Running statistics are averaged once per epoch instead of broadcast at every step."""
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
        """Return the sum over the ranks of values[rank], given values (ranks, …)."""
        own = values.new_empty(values[0].numel())
        _REDUCE_SCATTER(own, values.contiguous().view(-1))
        return own.view(values.shape[1:])


def join_backend(workers: WorkersConfig, device: torch.device) -> Backend:
    """Return the backend of this rank in a Ray Train worker. Raises UserError if it does not run there."""
    if workers.backend == "horovod":
        from landmark.training.distributed.horovod import Horovod

        return Horovod(device)
    return Ddp()


def backend_config(workers: WorkersConfig) -> ray.train.torch.TorchConfig:
    """Return the configuration by which Ray Train connects the workers."""
    if workers.backend == "horovod":
        from landmark.training.distributed.horovod import HorovodConfig

        return HorovodConfig()
    return TorchOnNodes()


def check_backend(workers: WorkersConfig, compute: ComputeConfig) -> None:
    """Raise UserError with a fix unless workers.backend is installed and supports the settings. Imports no backend."""
    if workers.backend != "horovod" or workers.in_process:
        return
    if compute.deterministic:
        raise UserError(
            "compute.deterministic requires bitwise identical results in every run, but Horovod sums gradients in arrival "
            "order; set workers.backend to ddp"
        )
    found = importlib.util.find_spec("horovod")
    folders = list(found.submodule_search_locations or []) if found is not None else []
    if not any(Path(folder, "torch").glob("mpi_lib_v2*.so") for folder in folders):
        built = "is not installed" if found is None else "was built without PyTorch"
        raise UserError(
            f"workers.backend is horovod, but Horovod {built} for {sys.executable}; "
            f"run: bash scripts/install-horovod.sh {sys.executable} (docs/how-to/horovod.md), or set workers.backend to ddp"
        )
