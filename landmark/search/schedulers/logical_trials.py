"""What a scheduler of Ray Tune sees of a study: landmark's trials, and a controller that stops and pauses them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from landmark.search.state.state import Decision, TrialState


@dataclass(eq=False)
class LogicalTrial:
    """A trial with the attributes of Ray Tune's `Trial` that its schedulers use.

    It runs from its proposal to its end, even while it waits for resources or for another process: its status depends only
    on the journal.
    """

    number: int
    status: str = Trial.PENDING
    record: TrialState | None = None
    """The trial in the study's record; None before it is proposed."""
    epoch: int = 0
    """The last epoch that the scheduler knows."""
    last_result: dict[str, Any] = field(default_factory=dict)
    is_saving: bool = False

    @property
    def trial_id(self) -> str:
        """An id that does not depend on the trial's settings."""
        return f"{self.number:05d}"

    @property
    def config(self) -> dict[str, Any]:
        """The trial's point; empty before it is proposed."""
        return dict(self.record.plan.point) if self.record is not None else {}

    @property
    def epochs(self) -> int:
        """Number of epochs in the trial's plan; 0 before it is proposed."""
        return self.record.plan.recipe.epochs if self.record is not None else 0

    def is_finished(self) -> bool:
        """Return whether the trial has ended or failed."""
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def __str__(self) -> str:
        return self.record.plan.name if self.record is not None else self.trial_id

    __repr__ = __str__


class Controller:
    """The methods of Ray Tune's `TuneController` that schedulers call, without its processes."""

    def __init__(self, scheduler: TrialScheduler, decided: Callable[[LogicalTrial, Decision], object]) -> None:
        """decided: called with each trial that the scheduler stops or pauses through this controller."""
        self.trials: dict[int, LogicalTrial] = {}
        """Number of a trial in the study -> the trial."""
        self.complete = False
        """Whether the study has no further trials."""
        self.search_alg = SimpleNamespace(
            searcher=SimpleNamespace(on_pause=lambda trial_id: None, on_unpause=lambda trial_id: None)
        )
        self._scheduler = scheduler
        self._decided = decided
        self._next = LogicalTrial(0)
        """Stands for the study's next trial, so that schedulers start new trials before they continue paused ones."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"landmark has no tune_controller.{name}; use a scheduler that only stops or pauses trials"
        )

    def get_trials(self) -> list[LogicalTrial]:
        """Return all trials, and a pending one if the study has further trials."""
        return [*self.trials.values(), *([] if self.complete else [self._next])]

    def get_live_trials(self) -> set[LogicalTrial]:
        """Return the trials that have not ended."""
        return {trial for trial in self.trials.values() if not trial.is_finished()}

    def stop_trial(self, trial: LogicalTrial) -> None:
        """Stop a trial, and notify the scheduler as Ray Tune does."""
        if trial.is_finished():
            return
        self.finish(trial)
        if trial.record is not None:
            self._decided(trial, "stop")

    def pause_trial(self, trial: LogicalTrial, should_checkpoint: bool = True) -> None:
        """Pause a running trial. Its checkpoint exists already."""
        if trial.status == Trial.RUNNING:
            trial.status = Trial.PAUSED
            self._decided(trial, "pause")

    def finish(self, trial: LogicalTrial) -> None:
        """Notify the scheduler that a trial has ended."""
        if trial.status == Trial.RUNNING:
            self._scheduler.on_trial_complete(self, trial, trial.last_result)
        else:
            self._scheduler.on_trial_remove(self, trial)
        trial.status = Trial.TERMINATED

    def with_status(self, *statuses: str) -> Iterable[LogicalTrial]:
        """Return the trials with one of these statuses."""
        return (trial for trial in self.trials.values() if trial.status in statuses)
