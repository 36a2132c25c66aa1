"""What a training loop knows of its surroundings: rank, device, where metrics and checkpoints go."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from torch import nn


class Session(Protocol):
    """One training process as the loop sees it; in-process, Ray Train worker and Tune trial implement it."""

    rank: int
    """Number of this process, 0 to world_size - 1."""
    world_size: int
    """Number of processes that train this model together."""
    device: torch.device
    """Where this process computes."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model so wrapped that `backward` averages gradients over the ranks; itself for one rank."""
        ...

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over the ranks, the same on each; called equally often on every rank."""
        ...

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Hand over an epoch's metrics, the same on every rank, and rank 0's checkpoint directory.

        The directory may be deleted when this returns. Called once an epoch on every rank. May not
        return: a scheduler that stops a trial ends it here.
        """
        ...

    def restore(self) -> AbstractContextManager[Path | None]:
        """Give the checkpoint directory to go on from, or None for a fresh start."""
        ...
