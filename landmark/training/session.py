"""What a training loop knows of its surroundings: rank, device, where metrics and checkpoints go."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import nn

from landmark.training.checkpoints import Snapshot
from landmark.training.pace import Pace

Phase = Literal["starting", "waiting for data", "in a step", "validating", "validated", "saving"]
"""What a training process does; validated: it waits for the other ranks' validation."""


class Session(Protocol):
    """One training process as the loop sees it; in-process, Ray Train worker and Tune trial implement it."""

    rank: int
    """Number of this process, 0 to world_size - 1."""
    world_size: int
    """Number of processes that train this model together."""
    device: torch.device
    """Where this process computes."""
    saves_within_epochs: bool
    """Whether `save` is possible."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model so wrapped that `backward` averages gradients over the ranks; itself for one rank."""
        ...

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over the ranks, the same on each; called equally often on every rank."""
        ...

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks, (world_size, …), the same on each: `values` has the same shape on every rank."""
        ...

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of values[rank], of values (world_size, …)."""
        ...

    def report(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Hand over an epoch's metrics, the same on every rank, and rank 0's snapshot.

        Called once an epoch on every rank. May not return: a scheduler that stops a trial ends it here.
        """
        ...

    def save(self, snapshot: Snapshot | None, *, at_once: bool) -> None:
        """Hand over rank 0's snapshot within an epoch; returns before it is stored, unless at_once.

        None on rank 0: nothing changed since the snapshot before, and at_once waits for that one. Called on every rank.
        May not return where the process was asked to end.
        """
        ...

    def asked(self) -> bool:
        """Return whether the surroundings want a checkpoint now, before this or another process is taken away.

        Called equally often on every rank, now and then; answers True once for each notice.
        """
        ...

    def moved(self, phase: Phase) -> None:
        """Take note that the loop got on and what it is at now."""
        ...

    def measured(self, pace: Pace) -> None:
        """Take this process's pace, some ten seconds after the one before and at the end of an epoch."""
        ...

    def restore(self) -> AbstractContextManager[Path | None]:
        """Give the checkpoint directory to go on from, or None for a fresh start."""
        ...
