"""The queue of a study's trials, as Ray Tune asks for them, and what it tells of them back to the record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from landmark.search.proposals import Proposals
from landmark.search.record import TrialRecord
from landmark.search.schedulers import Rule, StudyScheduler


class TrialQueue(Searcher):
    """Gives Ray Tune the trials that wait, those least far first, then new ones; ends when all have ended."""

    def __init__(
        self, rule: Rule, proposals: Proposals, values_of: Callable[[TrialRecord], dict[str, Any]], most: int
    ) -> None:
        """values_of: what a trial's process is given of it. most: trials that Ray Tune may have at a time."""
        super().__init__()
        self.rule = rule
        self.record = rule.record
        self.proposals = proposals
        self.values_of = values_of
        self.most = most
        self._told = set[str]()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing of the study's config: Ray Tune stores its searcher beside the study, which holds no credentials."""
        return {**self.__dict__, "values_of": None}

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config; None while there are enough or all wait for others, FINISHED when all have ended."""
        self._tell_ended()
        if sum(trial.handed and trial.state != "ended" for trial in self.record.trials.values()) >= self.most:
            return None
        trial = self._waiting() or self._new() or self._waiting()
        if trial is None:
            ended = all(trial.state == "ended" for trial in self.record.trials.values())
            return Searcher.FINISHED if ended else None
        trial.handed = True
        return {"trial": self.values_of(trial)}

    def _waiting(self) -> TrialRecord | None:
        waiting = [trial for trial in self.record.trials.values() if trial.state == "waiting" and not trial.handed]
        # Of those equally far, one with an exploit first: its source's checkpoint is there until the source goes on.
        return min(waiting, key=lambda t: (t.epochs_run, t.planned is None, t.plan.number), default=None)

    def _new(self) -> TrialRecord | None:
        """Return a trial that was not there yet; where there is none any more, those that wait for it are judged."""
        plan = self.proposals.next()
        if plan is not None:
            return self.record.propose(plan)
        if not self.record.complete:
            self.record.complete = True
            self.rule.settle()
        return None

    def propose_all(self) -> None:
        """Take up all trials now: those of a population know each other from the beginning."""
        while self._new() is not None:
            pass

    def _tell_ended(self) -> None:
        """Let the searcher know what came of the trials that ended since."""
        for trial in self.record.trials.values():
            if trial.state == "ended" and trial.plan.name not in self._told:
                self._told.add(trial.plan.name)
                found = None
                if trial.rows and trial.error is None:
                    found = trial.rows[self.rule.best_epoch(trial)] | {"parameters": float(trial.weights or 0)}
                self.proposals.told(trial.plan, found)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the scheduler has told the record."""

    def save(self, checkpoint_path: str) -> None:
        """Leave a mark alone: the study's journal has all there is to know."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see save."""


class Keeper(Callback):
    """Keeps the record's states as Ray Tune starts trials and loses processes, and its journal written."""

    def __init__(self, scheduler: StudyScheduler) -> None:
        self.scheduler = scheduler
        self.record = scheduler.record

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial runs."""
        self.record.of(trial).state = "running"

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial lost its process and waits for another one."""
        self.record.of(trial).state = "waiting"

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial lost its process for good."""
        self.scheduler.failed(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Write the journal now and then."""
        self.record.flush(due=True)
