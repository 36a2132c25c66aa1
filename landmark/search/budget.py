"""The budget of a study: epochs, wall time, and the value of the metric at which it is done."""

import time
from collections.abc import Callable
from typing import Any

from ray.tune import Stopper

from landmark.config import BudgetConfig
from landmark.evaluation.ranking import score
from landmark.search.record import StudyRecord


class BudgetStopper(Stopper):
    """Ends the study when its epochs or its wall time are spent, those of earlier processes included, or its target is met."""

    def __init__(
        self,
        config: BudgetConfig,
        record: StudyRecord,
        metric: str,
        mode: str,
        lost: Callable[[], bool] = lambda: False,
    ) -> None:
        """lost: whether another process has taken the study over, so that this one ends."""
        self.lost = lost
        self.config = config
        self.record = record
        self.metric = metric
        self.mode = mode

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is ended here."""
        return False

    def stop_all(self) -> bool:
        """Return whether the study ends now."""
        return self.lost() or self.reason() is not None

    def reason(self) -> str | None:
        """Return what ends the study, in words, or None."""
        config, record = self.config, self.record
        if config.epochs is not None and record.epochs_run >= config.epochs:
            return f"its budget of {config.epochs} epochs is spent"
        if config.seconds is not None and self.seconds() >= config.seconds:
            return f"its budget of {config.seconds:g} s is spent"
        if config.target is not None and self._reached(config.target):
            return f"a trial reached its target, {self.metric} {config.target:g}"
        return None

    def seconds(self) -> float:
        """Return the wall time spent, by all processes that drove the study."""
        return self.record.seconds_before + time.monotonic() - self.record.started

    def _reached(self, target: float) -> bool:
        rows = (row for trial in self.record.trials.values() if trial.error is None for row in trial.rows.values())
        return any(score(row[self.metric], self.mode) >= score(target, self.mode) for row in rows)
