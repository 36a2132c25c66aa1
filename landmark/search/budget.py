"""The budget of a study: maximum epochs, maximum wall time, and a target value of the metric."""

import time
from collections.abc import Callable
from typing import Any

from ray.tune import Stopper

from landmark.config import BudgetConfig
from landmark.evaluation.ranking import score
from landmark.search.state.state import StudyState


class BudgetStopper(Stopper):
    """Ends the study when its epochs or wall time, including earlier processes, are used up or its target is reached."""

    def __init__(
        self,
        config: BudgetConfig,
        record: StudyState,
        metric: str,
        mode: str,
        lost: Callable[[], bool] = lambda: False,
    ) -> None:
        """lost: returns whether another process has taken the study over; the study then ends in this process."""
        self.lost = lost
        self.config = config
        self.record = record
        self.metric = metric
        self.mode = mode

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: this stopper ends no single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether the study ends now."""
        return self.lost() or self.reason() is not None

    def reason(self) -> str | None:
        """Return a description of the exhausted budget or reached target; None if the study continues."""
        config, record = self.config, self.record
        if config.epochs is not None and record.epochs_run >= config.epochs:
            return f"its budget of {config.epochs} epochs is used up"
        if self.out_of_time():
            return f"its budget of {config.seconds:g} s is used up"
        if config.target is not None and self._reached(config.target):
            return f"a trial reached its target, {self.metric} {config.target:g}"
        return None

    def out_of_time(self) -> bool:
        """Return whether the wall time is used up. A study with a larger budget then resumes."""
        return self.config.seconds is not None and self.seconds() >= self.config.seconds

    def seconds(self) -> float:
        """Return the wall time in seconds of all processes that drove the study."""
        return self.record.seconds_before + time.monotonic() - self.record.started

    def _reached(self, target: float) -> bool:
        rows = (row for trial in self.record.trials.values() if trial.error is None for row in trial.rows.values())
        return any(score(row[self.metric], self.mode) >= score(target, self.mode) for row in rows)
