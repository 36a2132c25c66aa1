"""Exports the number of a running study's trials per state to Prometheus, as `ray_landmark_trials`."""

import time
from collections import Counter
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.util.metrics import Gauge

from landmark.search.state.state import StudyState, TrialState

INTERVAL_S = 5.0
STATES = ("pending", "running", "paused", "finished", "stopped", "failed")


def state_of(trial: TrialState) -> str:
    """Return one of STATES; a pending trial is known but has not started."""
    if trial.state != "ended":
        return {"waiting": "paused" if trial.rows else "pending"}.get(trial.state, trial.state)
    return {"finished": "finished", "failed": "failed"}.get(trial.status(), "stopped")


class TrialStateMetrics(Callback):
    """Exports the numbers periodically while Ray Tune runs, and at its end."""

    def __init__(self, study: str, record: StudyState, total: int) -> None:
        self.study = study
        self.record = record
        self.total = total
        self.exported_at = 0.0
        self.gauge = Gauge("landmark_trials", "Trials of a study in a state", ("study", "state"))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Export the numbers when the interval has passed."""
        if time.monotonic() - self.exported_at >= INTERVAL_S:
            self.tell()

    def tell(self) -> None:
        """Set the gauge of each state; trials that are not proposed yet count as pending."""
        self.exported_at = time.monotonic()
        counts = Counter(state_of(trial) for trial in self.record.trials.values())
        counts["pending"] += max(0, self.total - len(self.record.trials))
        for state in STATES:
            self.gauge.set(counts[state], {"study": self.study, "state": state})
