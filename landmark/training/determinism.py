"""compute.deterministic on GPUs: layers whose gradient has no deterministic kernel are replaced, or named before the first step."""

import copy
import functools

import torch
from torch import nn

from landmark.config import UserError
from landmark.models import logits_of, train_mode
from landmark.models.heads import without_autocast
from landmark.training.precision import Precision


class DeterministicAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """AdaptiveAvgPool2d as two matrix products in fp32, whose gradient on a GPU is the same in every run."""

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
    """Return the matrix (parts, size) that averages a line of places into overlapping parts, as adaptive pooling has them."""
    with torch.inference_mode(False):  # one that validation makes serves training, too
        matrix = torch.zeros(parts, size)
        for part in range(parts):
            start, stop = part * size // parts, -(-(part + 1) * size // parts)
            matrix[part, start:stop] = 1 / (stop - start)
        return matrix.to(device)


def replace_pooling(model: nn.Module) -> None:
    """Replace a network's AdaptiveAvgPool2d layers, but for means over the whole map, which are deterministic."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.AdaptiveAvgPool2d and child.output_size not in (1, (1, 1)):
                setattr(parent, name, DeterministicAdaptiveAvgPool2d(child.output_size))


def check_deterministic(model: nn.Module, image_size: int, precision: Precision, backbone: str) -> None:
    """Raise UserError, naming the operation, unless a network's training step is deterministic; takes one step of a copy.

    Called while torch.use_deterministic_algorithms is on: torch raises at an operation without a deterministic kernel.
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
