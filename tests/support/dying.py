"""Workers of Ray Train that die once, between storing an epoch and telling of it, or in a long validation."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import landmark.training.loop.fit as fit_module
from landmark.data.loading.reader import UnitReader
from landmark.training.distributed import ray_train

EPOCH = 2
VALIDATION_S = 10.0


def dying_work(values: dict[str, Any]) -> None:
    """Train in a worker of Ray Train, whose first rank 0 is killed when epoch 2 is stored and not yet told."""
    session, mark = ray_train.TrainWorkerSession, Path(values["run"]) / "died"
    go_on = session._go_on

    def die_once(self: ray_train.TrainWorkerSession, metrics: dict[str, Any]) -> None:
        if self.rank == 0 and metrics["epoch"] == EPOCH and not mark.exists():
            self.store.close()
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        go_on(self, metrics)

    session._go_on = die_once  # type: ignore[method-assign]
    ray_train._work(values)


def validating_work(values: dict[str, Any]) -> None:
    """Train in a worker whose first validation takes VALIDATION_S, and whose rank 1 is killed in the one of epoch 2."""
    from tests.support.witness import witnessed_work

    mark, validate = Path(values["run"]) / "died", fit_module.validate

    def slowly(batches: Iterator[Any], rank: int) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if batch.epoch == 1:
                time.sleep(VALIDATION_S / 10)
            elif batch.epoch == EPOCH and number == 2 and rank == 1 and not mark.exists():
                time.sleep(1.0)  # until what was saved before is stored
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    def slow(model: Any, batches: Iterator[Any], preprocess: Any, session: Any, *rest: Any) -> dict[str, float]:
        return validate(model, slowly(batches, session.rank), preprocess, session, *rest)

    fit_module.validate = slow  # type: ignore[assignment]
    witnessed_work(values)


class DyingReader(UnitReader):
    """A reader whose process dies as soon as it reads."""

    def read_all(self, units: Any) -> Any:
        """End the process."""
        os.kill(os.getpid(), signal.SIGKILL)
