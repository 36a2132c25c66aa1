"""Communication between ranks: synchronized batch norms, gradient compression to bf16, what DDP leaves out."""

import contextlib

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from landmark.config import ComputeConfig, UserError
from landmark.models.timm_models import TIMM_PREFIX


def sync_batch_norms(model: nn.Module, backbone: str, device: torch.device) -> nn.Module:
    """Return a model whose batch norms use the images of all ranks. The names of weights do not change.

    Raises UserError on CPUs, for which torch has no SyncBatchNorm, and for a model without batch norms.
    """
    if device.type != "cuda":
        raise UserError(
            "compute.sync_batchnorm is true, but the workers train on CPUs, which torch's SyncBatchNorm does not support; "
            "set it to false, or give each worker a GPU"
        )
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UserError(f"compute.sync_batchnorm is true, but {backbone} has no batch norms; set it to false")
    return converted(model, backbone)


def converted(model: nn.Module, backbone: str) -> nn.Module:
    """Return a model with SyncBatchNorm instead of its batch norms."""
    if backbone.startswith(TIMM_PREFIX):
        # timm's norms include the activation, which torch's conversion would drop.
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def register_comm_hook(model: nn.Module, compute: ComputeConfig) -> None:
    """Register the DDP hook of compute.ddp_comm_hook. A run with one worker has no DDP wrapper, so it needs no hook."""
    if compute.ddp_comm_hook == "bf16_compress" and isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, default_hooks.bf16_compress_hook)


def without_exchange(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context in which backward keeps the gradient on the rank. Models without a backend need none."""
    return getattr(model, "no_sync", contextlib.nullcontext)()


def keep_from_ddp(model: nn.Module, part: nn.Module) -> None:
    """Exclude a module's parameters from DDP, which would broadcast them although all ranks have the same."""
    local = {id(parameter) for parameter in part.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in local]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
