"""LoRA: low-rank updates of frozen matrices and kernels (Hu et al. 2022, arXiv 2106.09685)."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from landmark.config import UserError

RANK = 8
"""Default rank."""
PARAMETRIZED = ".parametrizations."
ORIGINAL = ".original"
NAMES = "names_before_lora"
"""Attribute of a model with the names of its tensors, in their order, before updates were added."""


class LowRank(nn.Module):
    """Adds the product of two small matrices to a weight. It is zero at the start.

    A kernel (out, in, height, width) is a matrix (out, in * height * width). The scale alpha / rank of the paper is 1, as in PEFT's
    default.
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        # kaiming_uniform_ with a = sqrt(5), as in the authors' code.
        self.down = nn.Parameter(weight.new_empty(rank, columns).uniform_(-1, 1).div_(columns**0.5))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with its update."""
        return weight + (self.up @ self.down).view_as(weight)


def add_lora(model: nn.Module, rank: int, excluded: set[str]) -> None:
    """Add trainable low-rank updates to a model's matrices and kernels, except those named in `excluded`.

    Depthwise kernels have none, nor weights with fewer than 2 * rank rows or columns, whose update would have as many values. The
    names of the weights change, see `plain_state`.
    """
    found = list(_matrices(model, rank, excluded))
    if not found:
        raise UserError(f"model.lora_rank is {rank}, but no weight has {2 * rank} rows and columns; lower it")
    setattr(model, NAMES, list(model.state_dict()))
    for layer, name in found:
        weight = getattr(layer, name)
        parametrize.register_parametrization(layer, name, LowRank(weight, rank), unsafe=True)


def _matrices(model: nn.Module, rank: int, excluded: set[str]) -> Iterator[tuple[nn.Module, str]]:
    for path, layer in model.named_modules():
        for name, weight in layer.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if full in excluded or weight.ndim not in (2, 4) or weight.shape[1] == 1:
                continue
            if min(weight.shape[0], weight[0].numel()) >= 2 * rank:
                yield layer, name


def has_lora(model: nn.Module) -> bool:
    """Return whether a model has low-rank updates."""
    return any(isinstance(module, LowRank) for module in model.modules())


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's tensors by the names that it has without low-rank updates, which are added to the weights."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        path, parametrized, rest = name.partition(PARAMETRIZED)
        if not parametrized:
            found[name] = tensor
        elif rest.endswith(ORIGINAL):
            weight = rest.removesuffix(ORIGINAL)
            found[f"{path}.{weight}"] = getattr(model.get_submodule(path), weight).detach()
    names = getattr(model, NAMES, list(found))
    return {name: found[name] for name in names}
