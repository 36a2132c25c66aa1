"""In-process session: one worker that writes checkpoints and metrics directly into the run's folder."""

import contextlib
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landmark.checkpoints.format import Snapshot
from landmark.checkpoints.store import CheckpointStore, Tell
from landmark.config import Stopped, TrainConfig, to_stored_yaml
from landmark.storage import Location
from landmark.training.loop.session import Phase, SingleRank
from landmark.training.observe.recorder import Recorder
from landmark.training.observe.throughput import Throughput


class LocalSession(SingleRank):
    """Training run in this process. SIGTERM, for example at a preemption, saves a checkpoint and ends the run."""

    saves_within_epochs = True
    reports_probe = True

    def __init__(self, run: Location, config: TrainConfig, tell: Tell) -> None:
        self.device = default_device()
        self.config = config
        self.store = CheckpointStore(run, config.monitor, config.monitor_mode(), config.checkpoint, tell)
        self.recorder = Recorder(run, tensorboard=config.tensorboard, tell=tell)
        self.terminated = False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: object) -> None:
        self.terminated = True

    def prepare(self, model: nn.Module) -> nn.Module:
        """Write config.yaml and return the model unchanged."""
        (self.store.run / "config.yaml").write_text(to_stored_yaml(self.config))
        return model

    def report(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Store the checkpoint and write the epoch's row."""
        if snapshot is not None:
            self.store.save(snapshot, metrics)
        self.recorder.add(metrics)
        self._end_if_terminated()

    def save(self, snapshot: Snapshot | None, *, at_once: bool) -> None:
        """Store a checkpoint within an epoch. Ends the run after SIGTERM."""
        if snapshot is not None:
            self.store.save(snapshot)
        if at_once:
            self.store.flush()
        self._end_if_terminated()

    def _end_if_terminated(self) -> None:
        if self.terminated:
            self.store.close()
            last = self.store.path("last")
            saved = (
                f"saved as {last}: run the same command with --resume to continue"
                if last
                else "no checkpoint was stored yet"
            )
            raise Stopped(f"terminated; {saved}")

    def checkpoint_requested(self) -> bool:
        """Return whether the process received SIGTERM."""
        return self.terminated

    def heartbeat(self, phase: Phase) -> None:
        """Do nothing: a single process has no watchdog."""

    def report_throughput(self, throughput: Throughput) -> None:
        """Do nothing: metrics are exported by Ray, which a single process does not use."""

    @contextlib.contextmanager
    def restore(self) -> Iterator[Path | None]:
        """Yield a directory with the newest complete checkpoint, or None."""
        with tempfile.TemporaryDirectory() as folder:
            self.store.claim()
            found = self.store.fetch_last(Path(folder))
            self.recorder.recover(self.store.last_metrics())
            yield Path(folder) if found else None

    def close(self) -> None:
        """Close the record and wait for the store."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        self.recorder.close()
        self.store.flush()


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
