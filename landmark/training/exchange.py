"""Options of exchanges between ranks: batch norms over all ranks' images, gradients sent in bf16."""

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from landmark.config import ComputeConfig, UserError
from landmark.models.registry import TIMM_PREFIX


def sync_batch_norms(model: nn.Module, backbone: str, device: torch.device) -> nn.Module:
    """Return a model whose batch norms take the mean over the images of all ranks; names of weights stay.

    Raises UserError on CPUs, for which torch has no SyncBatchNorm, and for a network without batch norms.
    """
    if device.type != "cuda":
        raise UserError(
            "compute.sync_batchnorm is true, but the workers train on CPUs, for which torch has no SyncBatchNorm; "
            "set it to false, or give each worker a GPU"
        )
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UserError(f"compute.sync_batchnorm is true, but {backbone} has no batch norms; set it to false")
    return converted(model, backbone)


def converted(model: nn.Module, backbone: str) -> nn.Module:
    """Return a model with SyncBatchNorm in place of its batch norms."""
    if backbone.startswith(TIMM_PREFIX):
        # timm's norms apply the activation, too: torch's conversion would leave that out.
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def register_comm_hook(model: nn.Module, compute: ComputeConfig) -> None:
    """Let DDP compress gradients as compute.ddp_comm_hook says; an elastic run of one worker exchanges nothing."""
    if compute.ddp_comm_hook == "bf16_compress" and isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, default_hooks.bf16_compress_hook)
