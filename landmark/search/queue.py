"""The queue of a study's trials, as Ray Tune asks for them, and what it tells of them back to the record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from landmark.search.proposals import Proposals
from landmark.search.record import StudyRecord, TrialRecord
from landmark.search.schedulers import StudyScheduler
from landmark.search.space import TrialPlan


class TrialQueue(Searcher):
    """Gives Ray Tune the trials that wait, those least far first, then new ones; ends when all have ended."""

    def __init__(self, record: StudyRecord, proposals: Proposals, metric: str, mode: str) -> None:
        super().__init__()
        self.record = record
        self.proposals = proposals
        self.best_of = (metric, mode)
        self.values_of: Callable[[TrialPlan], dict[str, Any]] = lambda plan: {"name": plan.name}
        """What a trial's process is given of its plan."""
        self.most = 1
        """Trials that Ray Tune may have at a time."""
        self._told = set[str]()

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config; None while there are enough or all wait for others, FINISHED when all have ended."""
        self.tell_ended()
        if sum(trial.handed and trial.state != "ended" for trial in self.record.trials.values()) >= self.most:
            return None
        waiting = [trial for trial in self.record.trials.values() if trial.state == "waiting" and not trial.handed]
        trial = min(waiting, key=lambda trial: (trial.epochs_run, trial.plan.number), default=None) or self._new()
        if trial is None:
            ended = all(trial.state == "ended" for trial in self.record.trials.values())
            return Searcher.FINISHED if ended else None
        trial.handed = True
        return {"trial": self.values_of(trial.plan)}

    def _new(self) -> TrialRecord | None:
        plan = self.proposals.next()
        return None if plan is None else self.record.propose(plan)

    def propose_all(self) -> None:
        """Take up all trials now: those of a population know each other from the beginning."""
        while self._new() is not None:
            pass

    def tell_ended(self) -> None:
        """Let the searcher know what came of the trials that ended since."""
        for trial in self.record.trials.values():
            if trial.state == "ended" and trial.plan.name not in self._told:
                self._told.add(trial.plan.name)
                best = trial.best_epochs(*self.best_of) if trial.error is None else []
                found = trial.rows[best[0]] | {"parameters": float(trial.weights or 0)} if best else None
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
        record = self.record.of(trial)
        record.state = "running"
        record.legs += 1

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial lost its process and waits for another one."""
        self.record.of(trial).state = "waiting"

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial lost its process for good."""
        self.scheduler.failed(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Write the journal now and then."""
        self.record.flush(due=True)
