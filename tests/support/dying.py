"""Ray Train workers that die once: after an epoch is stored but not reported, or during a long validation."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import landmark.training.loop.fit as fit_module
from landmark.data.loading.reader import RowGroupReader
from landmark.training.distributed import ray_train

EPOCH = 2
VALIDATION_S = 16.0


def dying_work(values: dict[str, Any]) -> None:
    """Train in a Ray Train worker. The first rank 0 is killed when epoch 2 is stored but not yet reported."""
    session, died = ray_train.TrainWorkerSession, Path(values["run"]) / "died"
    report_epoch = session._continue

    def die_once(self: ray_train.TrainWorkerSession, metrics: dict[str, Any]) -> None:
        if self.rank == 0 and metrics["epoch"] == EPOCH and not died.exists():
            self.store.close()
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        report_epoch(self, metrics)

    session._continue = die_once  # type: ignore[method-assign]
    ray_train._work(values)


def validating_work(values: dict[str, Any]) -> None:
    """Train in a worker whose first validation takes VALIDATION_S. Rank 1 is killed in the validation of epoch 2."""
    from tests.support.witness import recording_work

    died, validate = Path(values["run"]) / "died", fit_module.validate

    def slow_batches(batches: Iterator[Any], rank: int) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if batch.epoch == 1:
                time.sleep(VALIDATION_S / 10)
            elif batch.epoch == EPOCH and number == 2 and rank == 1 and not died.exists():
                time.sleep(1.0)  # until the last checkpoint is stored
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    def slow_validate(
        model: Any, batches: Iterator[Any], preprocess: Any, session: Any, *rest: Any
    ) -> dict[str, float]:
        return validate(model, slow_batches(batches, session.rank), preprocess, session, *rest)

    fit_module.validate = slow_validate  # type: ignore[assignment]
    recording_work(values)


class DyingReader(RowGroupReader):
    """A reader whose process dies when it reads."""

    def read_all(self, read_tasks: Any) -> Any:
        """End the process."""
        os.kill(os.getpid(), signal.SIGKILL)
