"""compute.deterministic on GPUs: replaces or reports layers whose gradient has no deterministic kernel."""

import copy
import functools

import torch
from torch import nn

from landmark.config import UserError
from landmark.models import logits_of, train_mode
from landmark.models.heads import without_autocast
from landmark.training.compute.precision import Precision


class DeterministicAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """AdaptiveAvgPool2d as two matrix products in fp32, whose gradient on a GPU is deterministic."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the means (n, c, h', w') of maps (n, c, h, w)."""
        sizes = self.output_size if isinstance(self.output_size, tuple) else (self.output_size, self.output_size)
        with without_autocast(maps):
            rows, columns = (
                averaging_matrix(maps.shape[axis], size or maps.shape[axis], maps.device)
                for axis, size in zip((2, 3), sizes, strict=True)
            )
            return (rows @ maps.float() @ columns.T).to(maps.dtype)


@functools.lru_cache(maxsize=64)
def averaging_matrix(size: int, parts: int, device: torch.device) -> torch.Tensor:
    """Return the matrix (parts, size) that averages positions over overlapping parts, for adaptive pooling."""
    with torch.inference_mode(False):  # training also uses matrices that validation caches
        matrix = torch.zeros(parts, size)
        for part in range(parts):
            start, stop = part * size // parts, -(-(part + 1) * size // parts)
            matrix[part, start:stop] = 1 / (stop - start)
        return matrix.to(device)


def replace_pooling(model: nn.Module) -> None:
    """Replace a model's AdaptiveAvgPool2d layers, except global average pooling, which is deterministic."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.AdaptiveAvgPool2d and child.output_size not in (1, (1, 1)):
                setattr(parent, name, DeterministicAdaptiveAvgPool2d(child.output_size))


def check_deterministic(model: nn.Module, image_size: int, precision: Precision, backbone: str) -> None:
    """Raise UserError that names the operation unless the model's training step is deterministic.

    Runs one step of a copy of the model. torch.use_deterministic_algorithms must be on: with it, torch raises an error
    at an operation without a deterministic kernel.
    """
    tried = copy.deepcopy(model)
    train_mode(tried)
    images = torch.zeros(2, 3, image_size, image_size, device=precision.device)
    try:
        with precision.autocast():
            output = tried(images)
        logits = [output] if isinstance(output, torch.Tensor) else [each for each in output if each is not None]
        if logits_of(output).requires_grad:
            torch.stack([each.float().sum() for each in logits]).sum().backward()
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        if "deterministic" not in reason:
            raise
        operation = reason.split(" ")[0]
        raise UserError(
            f"compute.deterministic is true, but {operation}, which {backbone} uses, has no deterministic version on this device; "
            "choose another model.backbone, or set compute.deterministic to false"
        ) from None
