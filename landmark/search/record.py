"""The record of a study as it runs: each trial's epochs, state, checkpoints and times, fed by Ray Tune's callbacks."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray.tune import Callback
from ray.tune.experiment import Trial

from landmark.search.space import TrialPlan

METRICS = (
    "epoch",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_top5",
    "val_macro_recall",
    "lr",
    "images_per_s",
    "data_wait_share",
    "epoch_seconds",
    "lost_images",
)
"""What is kept of an epoch, out of all that Ray Tune adds to a report."""
FIRST_STEP, REPORTED, ERROR, CHECKPOINT = "first_step_at", "reported_at", "error", "checkpoint_path"
"""Keys of a report besides the metrics: unix times, a failed trial's message, where its checkpoint lies."""

State = Literal["waiting", "running", "paused", "ended"]
Status = Literal["finished", "stopped early", "failed", "not started"]


@dataclass(kw_only=True)
class TrialRecord:
    """One trial as it runs."""

    plan: TrialPlan
    state: State = "waiting"
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics by epoch."""
    checkpoints: dict[int, str] = field(default_factory=dict)
    """Path of the checkpoint by epoch, as the storage's filesystem has it; all but the best and the last are deleted."""
    error: str | None = None
    """Why it failed, in one line."""
    process: str = ""
    """Host and process that ran it last."""
    first_step_at: float | None = None
    """Unix time of its first training step."""
    last_report_at: float | None = None
    """Unix time of its last report."""

    @property
    def epochs_run(self) -> int:
        """Epochs trained."""
        return max(self.rows, default=0)

    @property
    def seconds(self) -> float:
        """Seconds spent on its epochs: training and validation."""
        return sum(row["epoch_seconds"] for row in self.rows.values())

    def status(self) -> Status:
        """Return how it ended; a trial that its own or the study's rules ended before its last epoch stopped early."""
        if self.error is not None:
            return "failed"
        if not self.rows:
            return "not started"
        return "finished" if self.epochs_run >= self.plan.recipe.epochs else "stopped early"

    def best_epochs(self, metric: str, mode: str) -> list[int]:
        """Return the epochs, best first; of equals the earlier first."""
        sign = -1.0 if mode == "max" else 1.0
        return sorted(self.rows, key=lambda epoch: (sign * self.rows[epoch][metric], epoch))


class StudyRecord(Callback):
    """Keeps a TrialRecord for every planned trial."""

    def __init__(self, plans: Iterable[TrialPlan]) -> None:
        self.trials = {plan.name: TrialRecord(plan=plan) for plan in plans}
        self.started = time.monotonic()
        self.started_at = time.time()

    def of(self, trial: Trial) -> TrialRecord:
        """Return the record of one of Ray Tune's trials."""
        return self.trials[trial.config["trial"]["name"]]

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Take over the states that Ray Tune changes without a callback."""
        states: dict[str, State] = {
            Trial.PENDING: "waiting",
            Trial.RUNNING: "running",
            Trial.PAUSED: "paused",
            Trial.TERMINATED: "ended",
            Trial.ERROR: "ended",
        }
        for trial in trials:
            self.of(trial).state = states[trial.status]

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Note an epoch, or the failure of a trial that reports one."""
        record = self.of(trial)
        record.process = f"{result['hostname']}:{result['pid']}"
        if record.first_step_at is None:
            record.first_step_at = result.get(FIRST_STEP)
        record.last_report_at = result.get(REPORTED)
        if ERROR in result:
            record.error = str(result[ERROR])
            return
        epoch = int(result["epoch"])
        record.rows[epoch] = {key: float(result[key]) for key in METRICS if key in result}
        if CHECKPOINT in result:
            record.checkpoints[epoch] = str(result[CHECKPOINT])

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Any, **info: Any) -> None:
        """Note where the checkpoint of the last epoch lies."""
        self.of(trial).checkpoints[int(trial.last_result["epoch"])] = checkpoint.path

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note a trial whose process died too often."""
        self.of(trial).error = _death(trial)

    def counts(self) -> Mapping[str, int]:
        """Return how many of the trials that ended have each status."""
        found = dict.fromkeys(("finished", "stopped early", "failed", "not started"), 0)
        for record in self.trials.values():
            found[record.status()] += 1
        return found

    @property
    def epochs_run(self) -> int:
        """Epochs trained in all."""
        return sum(record.epochs_run for record in self.trials.values())


def _death(trial: Trial) -> str:
    """Return one line that says why a trial's process ended, out of Ray Tune's error file."""
    file = Path(trial.error_file)
    lines = file.read_text().splitlines() if file.is_file() else []
    told = next((line for line in reversed(lines) if "memory" in line or "dead because" in line), "no reason is known")
    return f"its process died more often than workers.max_failures allows: {told.strip()[:200]}"
