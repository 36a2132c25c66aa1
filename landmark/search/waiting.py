"""Prints why a study makes no progress while other work holds the cluster's resources."""

import time
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.util import placement_group_table

from landmark.search.state.state import StudyState
from landmark.tracking.background import Say

AFTER_S = 30.0
"""Seconds without progress after which the study prints what it waits for."""
AGAIN_S = 600.0
"""Seconds until it prints this again."""


class WaitingNotice(Callback):
    """Prints the resources that trials require and those that are free while no trial can start."""

    def __init__(
        self, record: StudyState, requires: str, *, in_process: bool, say: Say, after_s: float = AFTER_S
    ) -> None:
        """requires: description of a trial's resources. in_process: whether a trial is one process, started by Ray Tune."""
        self.record = record
        self.requires = requires
        self.in_process = in_process
        self.say = say
        self.after_s = after_s
        self._seen = 0
        self._quiet_until = time.monotonic() + after_s

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Check the trials; query the cluster only after after_s seconds without progress."""
        spent, now = self.record.epochs_run, time.monotonic()
        running = any(trial.state == "running" for trial in self.record.trials.values())
        if spent != self._seen or (running and self.in_process):
            self._seen, self._quiet_until = spent, now + self.after_s
        elif now >= self._quiet_until:
            self._quiet_until = now + self.after_s
            if not running or self._pending():
                self._quiet_until = now + AGAIN_S
                self.say(self.text())

    def _pending(self) -> bool:
        """Return whether a placement group waits: Ray Train starts the workers of a trial of several workers."""
        return any(group["state"] in ("PENDING", "RESCHEDULING") for group in placement_group_table().values())

    def text(self) -> str:
        """Return a note with the resources that a trial requires and those that are free."""
        free, total = ray.available_resources(), ray.cluster_resources()
        parts = [f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s" for kind in ("CPU", "GPU") if total.get(kind)]
        return (
            f"note: waiting for resources: a trial requires {self.requires}; free: {', '.join(parts)}. "
            "Other work holds the rest (`ray status` lists it); the study continues when it is released"
        )
