"""The queue from which Ray Tune gets a study's trials, and the callback that keeps the record up to date."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from landmark.search.schedulers.base import Scheduler
from landmark.search.schedulers.study_scheduler import StudyScheduler
from landmark.search.spaces.samplers import Sampler
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.state import Ended, StudyState, TrialState


class Proposals:
    """The sampler of a study, which learns the results of ended trials in the order of the journal."""

    def __init__(self, record: StudyState, sampler: Sampler, metric: str, mode: str) -> None:
        self.record = record
        self.sampler = sampler
        self.metric = metric
        self.mode = mode
        self._told = 0

    def next(self) -> TrialSpec | None:
        """Return the next trial; None if there are no more."""
        self._tell()
        return self.sampler.next()

    def replay(self, event: Mapping[str, Any]) -> None:
        """Process an event of the journal; the record contains it already."""
        if event["event"] == "trial":
            self._tell()
            self.sampler.restore(self.record.trials[event["trial"]].plan)

    def _tell(self) -> None:
        for ended in self.record.ended[self._told :]:
            self.sampler.tell(ended.trial.plan, self._result(ended))
        self._told = len(self.record.ended)

    def _result(self, ended: Ended) -> dict[str, float] | None:
        """Return the metrics of a trial's best epoch when it ended; None if it failed."""
        trial = ended.trial
        best = (epoch for epoch in trial.best_epochs(self.metric, self.mode) if epoch <= ended.epochs)
        epoch = None if ended.failed else next(best, None)
        return None if epoch is None else trial.rows[epoch] | {"parameters": float(trial.weights or 0)}


class StudySearcher(Searcher):
    """Gives waiting trials to Ray Tune, those with the fewest epochs first, then new trials, until all have ended."""

    def __init__(
        self,
        rule: Scheduler,
        proposals: Proposals,
        values_of: Callable[[TrialState], dict[str, Any]],
        slots: Callable[[], int],
    ) -> None:
        """values_of: returns the values for a trial's process. slots: returns the number of concurrent trials."""
        super().__init__()
        self.rule = rule
        self.record = rule.record
        self.proposals = proposals
        self.values_of = values_of
        self.slots = slots

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the study: Ray Tune stores it, and it must hold no credentials."""
        return {**self.__dict__, "values_of": None, "slots": None, "rule": None, "record": None, "proposals": None}

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config; None if no slot is free or all wait for others; FINISHED if all have ended."""
        if sum(trial.submitted and trial.state != "ended" for trial in self.record.trials.values()) >= self.slots():
            return None
        trial = self._waiting() or self._continued() or self._new() or self._continued()
        if trial is None:
            ended = all(trial.state == "ended" for trial in self.record.trials.values())
            return Searcher.FINISHED if ended else None
        trial.submitted = True
        return {"trial": self.values_of(trial)}

    def _waiting(self) -> TrialState | None:
        waiting = [trial for trial in self.record.trials.values() if trial.state == "waiting" and not trial.submitted]
        # Among equals, a trial with a planned exploit comes first: the source's checkpoint exists until the source continues.
        return min(waiting, key=lambda t: (t.epochs_run, t.planned is None, t.plan.number), default=None)

    def _continued(self) -> TrialState | None:
        """Return a paused trial that the scheduler continues now."""
        self.rule.continue_paused()
        return self._waiting()

    def _new(self) -> TrialState | None:
        """Return a new trial; if none is left, notify the scheduler and return None."""
        plan = self.proposals.next()
        if plan is not None:
            trial = self.record.propose(plan)
            self.rule.on_propose(trial)
            return trial
        if not self.record.complete:
            self.record.all_proposed()
            self.rule.on_all_proposed()
        return None

    def propose_all(self) -> None:
        """Propose all trials now: population-based training compares all trials from the start."""
        while self._new() is not None:
            pass

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
