"""Session: the interface between the training loop and its environment (rank, device, metrics, checkpoints)."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import nn

from landmark.checkpoints.format import Snapshot
from landmark.data.loading.progress import EpochProgress
from landmark.training.observe.throughput import Throughput

if TYPE_CHECKING:
    from landmark.data.loading.streams import Shard

Phase = Literal["starting", "waiting for data", "in a step", "validating", "validated", "saving"]
"""Status of a training process. validated: it waits for the other ranks' validation."""


class SingleRank:
    """The collective operations of a run with one training process."""

    rank = 0
    world_size = 1

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values unchanged."""
        return values

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of the only rank."""
        return values[None]

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values for the only rank."""
        return values[0]

    def shard(self, split: str, position: EpochProgress) -> "Shard | None":
        """Return None: the loader reads the split itself."""
        return None


class Session(Protocol):
    """A training process from the loop's view. Implemented by the in-process session and the Ray Train worker."""

    rank: int
    """Index of this process, 0 to world_size - 1."""
    world_size: int
    """Number of processes that train this model together."""
    device: torch.device
    """Device of this process."""
    saves_within_epochs: bool
    """Whether the session supports `save`."""
    reports_probe: bool
    """Whether the session stores the probe that fine-tuning starts at, as epoch 0. A trial's epochs start at 1."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Wrap the model so that `backward` averages gradients over the ranks. For one rank, return the model."""
        ...

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over the ranks, the same on each. Call it equally often on every rank."""
        ...

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks, (world_size, …). The shape of `values` must be the same on every rank."""
        ...

    def reduce_scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of values[rank], given values (world_size, …)."""
        ...

    def shard(self, split: str, position: EpochProgress) -> "Shard | None":
        """Return this rank's Ray Data stream of a split, or None if the loader reads the split itself.

        position: the position from which training resumes. Called for the same splits on every rank.
        """
        ...

    def report(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Report an epoch's metrics, the same on every rank, and rank 0's snapshot.

        Called once per epoch on every rank. May not return: a scheduler that stops a trial ends it here.
        """
        ...

    def save(self, snapshot: Snapshot | None, *, at_once: bool) -> None:
        """Save rank 0's snapshot within an epoch. Returns before the snapshot is stored, unless at_once.

        None on rank 0 means that nothing changed since the previous snapshot; at_once then waits for that one. Called
        on every rank. May not return if the process was asked to end.
        """
        ...

    def checkpoint_requested(self) -> bool:
        """Return whether a checkpoint is requested now, before this or another process ends.

        Called periodically and equally often on every rank. Returns True once per request.
        """
        ...

    def heartbeat(self, phase: Phase) -> None:
        """Record that the loop made progress and entered a phase."""
        ...

    def report_throughput(self, throughput: Throughput) -> None:
        """Record this process's throughput, about every ten seconds and at the end of an epoch."""
        ...

    def restore(self) -> AbstractContextManager[Path | None]:
        """Yield the directory of the checkpoint to resume from, or None for a new run."""
        ...
