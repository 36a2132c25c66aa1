"""A worker that dies once between storing an epoch and telling of it."""

import os
import signal
from pathlib import Path
from typing import Any

from landmark.training import distributed

EPOCH = 2


def dying_work(values: dict[str, Any]) -> None:
    """Train in a worker of Ray Train, whose first rank 0 is killed when epoch 2 is stored and not yet told."""
    session, mark = distributed.TrainWorkerSession, Path(values["run"]) / "died"
    go_on = session._go_on

    def die_once(self: distributed.TrainWorkerSession, metrics: dict[str, Any]) -> None:
        if self.rank == 0 and metrics["epoch"] == EPOCH and not mark.exists():
            self.store.close()
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        go_on(self, metrics)

    session._go_on = die_once  # type: ignore[method-assign]
    distributed._work(values)
