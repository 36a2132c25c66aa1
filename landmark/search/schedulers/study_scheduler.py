"""The scheduler that Ray Tune calls: it keeps the study's record and applies the decisions of the study's scheduler."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from landmark.search.schedulers.base import Scheduler
from landmark.search.state.state import ERROR, StudyState, death_of


class StudyScheduler(FIFOScheduler):
    """Passes Ray Tune's reports to the record and to the rule, and returns the rule's decisions.

    For Ray Tune, a paused trial has ended: its process is reused, and the trial resumes later from its newest checkpoint as
    a new Ray Tune trial.
    """

    def __init__(self, record: StudyState, rule: Scheduler) -> None:
        super().__init__()
        self.record = record
        self.rule = rule

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the rule: Ray Tune stores it, and the scheduler of a user may not be serializable."""
        return {**self.__dict__, "rule": None}

    def begin(self, total: int) -> None:
        """Record that this process now drives the study, and the number of its trials."""
        self.record.begin(total, self.rule.identity)
        self.rule.begin(total)

    def retry_failed(self) -> int:
        """Queue the failed trials to run again; returns their number."""
        retried = self.record.retry_failed()
        for trial in retried:
            self.rule.on_retry(trial)
        return len(retried)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Process a report; returns whether Ray Tune's trial continues or stops."""
        record = self.record.of(trial)
        if not self.record.add(record, result):
            return TrialScheduler.CONTINUE
        if ERROR in result:
            self.rule.on_end(record)
            return TrialScheduler.STOP
        if record.epochs_run >= record.plan.recipe.epochs:  # ends by itself
            self.rule.on_end(record)
            return TrialScheduler.CONTINUE
        if record.decisions.get(record.epochs_run) is not None:  # trained again, because its checkpoint was lost
            return TrialScheduler.CONTINUE
        self.rule.on_result(record)
        return TrialScheduler.CONTINUE if record.state == "running" else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record the end of a trial, unless it will resume later."""
        record = self.record.of(trial)
        if record.state == "running":
            self.record.end(record)
            self.rule.on_end(record)

    def failed(self, trial: Trial) -> None:
        """Record a trial whose process died too often. Ray Tune's on_trial_error also runs for trials that are retried."""
        record = self.record.of(trial)
        self.record.fail(record, death_of(trial))
        self.rule.on_end(record)
