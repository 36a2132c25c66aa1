"""The queue from which Ray Tune gets a study's trials, and the callback that keeps the record up to date."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from landmark.search.schedulers import Scheduler, StudyScheduler
from landmark.search.spaces.samplers import Sampler
from landmark.search.state.state import TrialState


class StudySearcher(Searcher):
    """Gives waiting trials to Ray Tune, those with the fewest epochs first, then new trials, until all have ended."""

    def __init__(
        self, rule: Scheduler, proposals: Sampler, values_of: Callable[[TrialState], dict[str, Any]], most: int
    ) -> None:
        """values_of: returns the values for a trial's process. most: maximum number of concurrent trials."""
        super().__init__()
        self.rule = rule
        self.record = rule.record
        self.proposals = proposals
        self.values_of = values_of
        self.most = most
        self._reported = set[str]()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the study's config: Ray Tune stores it with the study, which must hold no credentials."""
        return {**self.__dict__, "values_of": None}

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config; None if the maximum runs or all wait for others; FINISHED if all have ended."""
        self._report_ended()
        if sum(trial.submitted and trial.state != "ended" for trial in self.record.trials.values()) >= self.most:
            return None
        trial = self._waiting() or self._new() or self._waiting()
        if trial is None:
            ended = all(trial.state == "ended" for trial in self.record.trials.values())
            return Searcher.FINISHED if ended else None
        trial.submitted = True
        return {"trial": self.values_of(trial)}

    def _waiting(self) -> TrialState | None:
        waiting = [trial for trial in self.record.trials.values() if trial.state == "waiting" and not trial.submitted]
        # Among equals, a trial with a planned exploit comes first: the source's checkpoint exists until the source continues.
        return min(waiting, key=lambda t: (t.epochs_run, t.planned is None, t.plan.number), default=None)

    def _new(self) -> TrialState | None:
        """Return a new trial; if none is left, let the scheduler resolve paused trials and return None."""
        plan = self.proposals.next()
        if plan is not None:
            return self.record.propose(plan)
        if not self.record.complete:
            self.record.complete = True
            self.rule.resolve_paused()
        return None

    def propose_all(self) -> None:
        """Propose all trials now: population-based training compares all trials from the start."""
        while self._new() is not None:
            pass

    def _report_ended(self) -> None:
        """Report the results of newly ended trials to the searcher."""
        for trial in self.record.trials.values():
            if trial.state == "ended" and trial.plan.name not in self._reported:
                self._reported.add(trial.plan.name)
                found = None
                if trial.rows and trial.error is None:
                    found = trial.rows[self.rule.best_epoch(trial)] | {"parameters": float(trial.weights or 0)}
                self.proposals.tell(trial.plan, found)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the scheduler has updated the record."""

    def save(self, checkpoint_path: str) -> None:
        """Create an empty file: the study's journal stores the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see save."""


class StudyCallback(Callback):
    """Updates the trials' states when Ray Tune starts trials or loses processes, and writes the journal."""

    def __init__(self, scheduler: StudyScheduler) -> None:
        self.scheduler = scheduler
        self.record = scheduler.record

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that a trial runs."""
        self.record.of(trial).state = "running"

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that a trial lost its process and waits for another."""
        self.record.of(trial).state = "waiting"

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that a trial failed because it lost its process too often."""
        self.scheduler.failed(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Write the journal if a write is due."""
        self.record.flush(due=True)
