"""The in-process session: one worker, checkpoints and record straight into the run's folder."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from landmark.storage import Location
from landmark.training.checkpoints import CheckpointStore
from landmark.training.recorder import Recorder


class LocalSession:
    """A training run in this process."""

    rank = 0
    world_size = 1

    def __init__(self, run: Location, *, monitor: str, mode: str, tensorboard: bool) -> None:
        self.device = default_device()
        self.store = CheckpointStore(run, monitor, mode)
        self.recorder = Recorder(run, tensorboard=tensorboard)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values: there is one rank."""
        return values

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Store the checkpoint, then write the epoch's row."""
        if checkpoint is not None:
            self.store.save(checkpoint, int(metrics["epoch"]), metrics)
        self.recorder.add(metrics)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Give the last checkpoint's directory."""
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) if self.store.fetch_last(Path(folder)) else None

    def close(self) -> None:
        """End the record."""
        self.recorder.close()


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
