"""Adapts a scheduler of Ray Tune to a study's journal, so that a restored study makes the same decisions."""

import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler, TrialScheduler

from landmark.config import UserError
from landmark.search.import_path import call, seeded
from landmark.search.schedulers.base import Scheduler
from landmark.search.schedulers.logical_trials import Controller, LogicalTrial
from landmark.search.schedulers.ray_schedulers import TIME, identity
from landmark.search.state.state import Decision, TrialState

WORST = 1e300
"""Stands for a metric that is not finite. Ray Tune's schedulers cannot compare NaN, and do not count infinite values."""
INPUTS = ("driver", "trial", "report", "failed", "retried", "all proposed")
"""Events of the journal that a scheduler decides on."""


class JournalScheduler(Scheduler):
    """Drives a scheduler that stops or pauses trials with the study's logical trials.

    The journal contains what the scheduler is called with, and its decisions. A restore calls a new scheduler with the same
    events, in order, and compares its decisions with the journal. `random` and NumPy are seeded around each call by its
    number. An epoch that is reported again after a failure is not forwarded.

    Earlier versions had their own rules, and their drivers wrote no identity of the scheduler. Decisions of these drivers are
    kept, not compared.
    """

    def __init__(self, *arguments: Any, scheduler: TrialScheduler, seed: int) -> None:
        super().__init__(*arguments)
        self.scheduler = scheduler
        self.identity = identity(scheduler)
        self.controller = Controller(scheduler, lambda trial, decision: self._made.append((trial, decision)))
        self.trials = self.controller.trials
        self.seed = seed
        self._expects_all = isinstance(scheduler, HyperBandScheduler)
        """Whether trials are added before they start. HyperBand would otherwise compare only those that run together."""
        self._total = 0
        self._made: deque[tuple[LogicalTrial, Decision]] = deque()
        """Decisions that are not in the record yet, in order."""
        self._calls = 0
        self._earlier = False
        """Whether a driver of an earlier version wrote the part of the journal that is replayed."""
        self._undecided: dict[LogicalTrial, dict[str, Any]] = {}
        """Last results in that part, as long as the journal has no decision about them."""
        self._written_by = ""

    def begin(self, total: int) -> None:
        """Add the study's trials to a scheduler that expects them."""
        self._begin(total)
        self._carry_out()

    def on_propose(self, trial: TrialState) -> None:
        """Add a new trial to the scheduler."""
        self._propose(trial)
        self._carry_out()

    def on_result(self, trial: TrialState) -> None:
        """Ask the scheduler, and decide on this trial and on all that waited for it."""
        self._report(trial)
        self._carry_out()

    def on_end(self, trial: TrialState) -> None:
        """Notify the scheduler of a trial that has reported its last epoch, ended or failed."""
        if trial.error is None:
            self._report(trial)
        self._end(trial)
        self._carry_out()

    def on_retry(self, trial: TrialState) -> None:
        """Add a failed trial to the scheduler again."""
        self._retry(trial)
        self._carry_out()

    def on_all_proposed(self) -> None:
        """Remove expected trials that do not exist."""
        self._all_proposed()
        self._carry_out()

    def continue_paused(self) -> None:
        """Ask the scheduler which trial runs next; if a paused one, set it to waiting."""
        self._choose()
        self._carry_out()

    def restore(self) -> None:
        """Decide what the journal lacks, and end or pause trials by their decisions."""
        self._decide_undecided()
        self._carry_out()
        for logical in self.trials.values():
            trial = logical.record
            if trial is None or trial.state == "ended":
                continue
            if logical.status == Trial.PAUSED:
                trial.state = "paused"
            elif logical.is_finished() and (trial.error is not None or trial.epochs_run < logical.epochs):
                self.record.end(trial)  # the journal ends between a decision and the trial's end

    def _carry_out(self) -> None:
        while self._made:
            logical, decision = self._made.popleft()
            assert logical.record is not None
            self.decide(logical.record, decision)

    def replay(self, event: Mapping[str, Any]) -> None:
        """Call the scheduler with an event, or compare its decision with the journal's.

        Raises UserError at the first difference.
        """
        kind = event["event"]
        if kind in INPUTS and self._made:
            logical, decision = self._made[0]
            raise self._difference(f"the journal has no decision about {logical} at epoch {logical.epoch}", decision)
        if kind == "driver":
            self._replay_driver(event)
        elif kind == "all proposed":
            self._all_proposed()
        elif kind in ("trial", "report", "decision", "failed", "ended", "retried"):
            trial = self.record.trials[event["trial"]]
            if kind == "trial":
                self._propose(trial)
            elif kind == "report":
                self._report(trial)
            elif kind == "decision":
                self._compare(trial, event)
            elif kind == "retried":
                self._retry(trial)
            else:
                self._end(trial)

    def _replay_driver(self, event: Mapping[str, Any]) -> None:
        if "scheduler" in event:
            self._written_by = event["scheduler"]
            self._begin(int(event["trials"]))
        else:
            self._earlier = True

    def _compare(self, trial: TrialState, event: Mapping[str, Any]) -> None:
        logical, epoch = self.trials[trial.plan.number], int(event["epoch"])
        recorded = trial.decisions[epoch]
        if self._earlier:
            self._adopt(logical, recorded)
            return
        if not self._made and logical.status == Trial.PAUSED:
            self._choose()
        found = f"the journal has the decision {recorded!r} about {logical} at epoch {epoch}"
        if not self._made:
            raise self._difference(found, None)
        other, decision = self._made.popleft()
        if (other, other.epoch, decision) != (logical, epoch, recorded):
            raise self._difference(found, decision, "" if other is logical else f" about {other}")

    def _difference(self, found: str, decision: Decision | None, about: str = "") -> UserError:
        kind = type(self.scheduler).__qualname__
        makes = f"decides {decision!r}{about}" if decision is not None else "makes none"
        written = f"; the journal was written with {self._written_by}" if self._written_by != self.identity else ""
        return UserError(
            f"{found}, but {kind} of Ray {ray.__version__} {makes}{written}; restore the journal and the versions that wrote "
            "it, or start a study with another --name"
        )

    def _adopt(self, logical: LogicalTrial, recorded: Decision | None) -> None:
        """Follow a decision of an earlier version."""
        if logical.is_finished():
            return
        self._record_undecided(logical)
        if recorded == "stop":
            self._finish(logical)
        else:
            logical.status = Trial.PAUSED if recorded == "pause" else Trial.RUNNING

    def _record_undecided(self, logical: LogicalTrial) -> None:
        """Let the scheduler record a result that an earlier version decided on, without a decision of its own."""
        if (result := self._undecided.pop(logical, None)) is not None:
            self._call("on_trial_complete", logical, result)
            self._call("on_trial_add", logical)

    def _decide_undecided(self) -> None:
        undecided, self._undecided = self._undecided, {}
        for logical, result in undecided.items():
            self._decide(logical, result)

    def _begin(self, total: int) -> None:
        self.controller.complete = False
        earlier, self._earlier = self._earlier, False
        if not self._expects_all:
            return
        total = max(total, *self.trials, self._total)
        numbers = list(range(self._total + 1, total + 1))
        # Neighbors in a grid are similar. The trials of a bracket are therefore sampled.
        random.Random(self.seed).shuffle(numbers)
        self._total = total
        for number in numbers:
            logical = self.trials.setdefault(number, LogicalTrial(number))
            if not logical.is_finished():
                self._call("on_trial_add", logical)
        if earlier:  # the open trials start in new brackets
            for logical in list(self.controller.with_status(Trial.RUNNING, Trial.PAUSED)):
                if 0 < logical.epoch < logical.epochs:
                    logical.status = Trial.RUNNING
                    self._decide(logical, logical.last_result)

    def _propose(self, trial: TrialState) -> None:
        number = trial.plan.number
        added = number in self.trials
        logical = self.trials.setdefault(number, LogicalTrial(number))
        logical.record = trial
        if not added and not self._skips():
            self._call("on_trial_add", logical)
        logical.status = Trial.RUNNING

    def _skips(self) -> bool:
        """Return whether the scheduler is not called: it gets the open trials of an earlier version when a study resumes."""
        return self._earlier and self._expects_all

    def _report(self, trial: TrialState) -> None:
        logical, epoch = self.trials[trial.plan.number], trial.epochs_run
        if logical.is_finished() or epoch <= logical.epoch:
            return
        row = trial.rows[epoch]
        value = row[self.metric]
        worst = -WORST if self.mode == "max" else WORST
        result: dict[str, Any] = {
            **row,
            self.metric: value if math.isfinite(value) else worst,
            TIME: epoch,
            "training_iteration": epoch,
            "trial_id": logical.trial_id,
            "config": logical.config,
        }
        if epoch >= logical.epochs:
            logical.epoch, logical.last_result = epoch, result
            self._finish(logical)
        elif self._earlier:
            self._record_undecided(logical)
            logical.epoch, logical.last_result = epoch, result
            if not self._skips():
                self._undecided[logical] = result
        else:
            logical.status = Trial.RUNNING
            self._decide(logical, result)

    def _decide(self, logical: LogicalTrial, result: dict[str, Any]) -> None:
        """Ask the scheduler about a running trial that has a new result."""
        logical.epoch = int(result[TIME])
        action = self._call("on_trial_result", logical, dict(result))
        logical.last_result = result
        decisions: dict[str, Decision] = {TrialScheduler.STOP: "stop", TrialScheduler.PAUSE: "pause"}
        decision = decisions.get(action, "continue")
        if logical.status != Trial.RUNNING:  # stopped or paused through the controller
            return
        if decision == "stop":
            self._finish(logical)
        elif decision == "pause":
            logical.status = Trial.PAUSED
        self._made.append((logical, decision))

    def _finish(self, logical: LogicalTrial) -> None:
        """Notify the scheduler that a trial has ended."""
        self._record_undecided(logical)
        if self._skips():
            logical.status = Trial.TERMINATED
            return
        self._calls += 1
        with seeded(self.seed, self._calls):
            call(f"scheduler {self.config.name}, end of {logical}", self.controller.finish, logical)

    def _end(self, trial: TrialState) -> None:
        logical = self.trials[trial.plan.number]
        if logical.is_finished():
            return
        if trial.error is None:
            self._finish(logical)
            return
        self._record_undecided(logical)
        if not self._skips():
            self._call("on_trial_error" if logical.status == Trial.RUNNING else "on_trial_remove", logical)
        logical.status = Trial.ERROR

    def _retry(self, trial: TrialState) -> None:
        logical = self.trials[trial.plan.number]
        logical.status = Trial.PENDING
        if not self._skips():
            self._call("on_trial_add", logical)
        logical.status = Trial.RUNNING

    def _all_proposed(self) -> None:
        self.controller.complete = True
        for logical in list(self.controller.with_status(Trial.PENDING)):
            self._finish(logical)
            del self.trials[logical.number]

    def _choose(self) -> None:
        """Ask the scheduler for the next trial to run; continue it if it is paused.

        If all trials are paused, no further one exists and the scheduler chooses none, the first one continues.
        """
        if not any(self.controller.with_status(Trial.PAUSED)):
            return
        with seeded(self.seed, self._calls + 1):
            chosen = call(
                f"scheduler {self.config.name}, choice of a trial",
                self.scheduler.choose_trial_to_run,
                self.controller,
            )
        active = any(self.controller.with_status(Trial.RUNNING, Trial.PENDING))
        if chosen is None and not active and not self._made and self.controller.complete:
            chosen = next(iter(self.controller.with_status(Trial.PAUSED)), None)
        if chosen is not None and chosen.status == Trial.PAUSED:
            chosen.status = Trial.RUNNING
            self._made.append((chosen, "continue"))
        if self._made:
            self._calls += 1

    def _call(self, method: str, logical: LogicalTrial, *arguments: Any) -> Any:
        """Call the scheduler about a trial, with seeded generators."""
        self._calls += 1
        where = f"scheduler {self.config.name}, {method} of {logical} at epoch {logical.epoch}"
        with seeded(self.seed, self._calls):
            return call(where, getattr(self.scheduler, method), self.controller, logical, *arguments)
