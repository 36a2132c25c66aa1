"""Base class of a study's schedulers; it lets every trial run to its end."""

from collections.abc import Mapping
from typing import Any

from landmark.config import SchedulerConfig
from landmark.search.state.state import Decision, StudyState, TrialState


class Scheduler:
    """Decides by the study's record only, so that a resumed study makes the same decisions."""

    identity: str | None = None
    """Class and version, stored in the journal; None if decisions do not depend on the version."""

    def __init__(self, record: StudyState, config: SchedulerConfig, metric: str, mode: str) -> None:
        self.record = record
        self.config = config
        self.metric = metric
        self.mode = mode

    def begin(self, total: int) -> None:
        """Start a driver process of the study. total: number of its trials."""

    def on_propose(self, trial: TrialState) -> None:
        """Process a new trial."""

    def on_result(self, trial: TrialState) -> None:
        """Decide on a trial that has completed an epoch, other than its last, for the first time."""
        self.decide(trial, "continue")

    def on_end(self, trial: TrialState) -> None:
        """Process a trial that has reported its last epoch, ended or failed."""

    def on_retry(self, trial: TrialState) -> None:
        """Process a failed trial that will run again."""

    def on_all_proposed(self) -> None:
        """Process the fact that the study has no further trials."""

    def continue_paused(self) -> None:
        """Set a paused trial to waiting if it may continue now; resources for a trial are available."""

    def replay(self, event: Mapping[str, Any]) -> None:
        """Process an event of the journal; the record contains it already."""

    def restore(self) -> None:
        """Apply the decisions of a restored record; decide now if a trial's newest epoch has no decision."""
        for trial in self.record.trials.values():
            epoch = trial.epochs_run
            if trial.state == "ended" or not 0 < epoch < trial.plan.recipe.epochs:
                continue
            trial.state = "running"
            if (decided := trial.decisions.get(epoch)) is not None:
                self.apply(trial, decided)
            elif epoch in trial.decisions:  # an older version wrote the journal, without decisions
                self.decide(trial, "continue")
            else:
                self.on_result(trial)
            if trial.state == "running":
                trial.state = "waiting"

    def decide(self, trial: TrialState, decision: Decision) -> None:
        """Record and apply a decision."""
        self.record.decide(trial, decision)
        self.apply(trial, decision)

    def apply(self, trial: TrialState, decision: Decision) -> None:
        """Set a trial's state to a decision."""
        if decision == "stop":
            self.record.end(trial)
        elif decision == "pause":
            trial.state = "paused"
        elif decision == "restart" or trial.state == "paused":
            trial.state = "waiting"
        if trial.state != "running":
            trial.submitted = False
