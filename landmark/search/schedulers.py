"""Schedulers: decide which trials stop early, pause, or continue with another trial's weights.

Decisions depend only on the study's record, so that a resumed study makes the same decisions. Ray Tune's own schedulers
lose their rungs at a restore. They also need Ray Tune's checkpoints to pause and exploit, which trials of several workers
do not have.
"""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from landmark.config import SchedulerConfig, UserError
from landmark.evaluation.ranking import score
from landmark.search.state.state import ERROR, Decision, StudyState, TrialState, death_of


class Scheduler:
    """Base class of the schedulers' rules; lets every trial run to its end."""

    def __init__(self, record: StudyState, config: SchedulerConfig, metric: str, mode: str) -> None:
        self.record = record
        self.config = config
        self.metric = metric
        self.mode = mode

    def on_result(self, trial: TrialState) -> Decision:
        """Return the decision about a trial that has completed an epoch other than its last."""
        return "continue"

    def on_restore(self, trial: TrialState) -> Decision:
        """Return the decision about a resumed trial if an older version wrote the journal, without decisions."""
        return self.on_result(trial)

    def resolve_paused(self) -> None:
        """Decide on paused trials: set those that continue to waiting, and end the others."""

    def score(self, trial: TrialState, epoch: int) -> float:
        """Return a trial's score at an epoch: higher is better, -inf for a metric that is not finite."""
        return score(trial.rows[epoch][self.metric], self.mode)

    def best_epoch(self, trial: TrialState) -> int:
        """Return a trial's best epoch; the first one in a tie."""
        return trial.best_epochs(self.metric, self.mode)[0]

    def others_at(self, trial: TrialState, epoch: int) -> list[TrialState]:
        """Return the other trials that have reached an epoch."""
        return [other for other in self.record.trials.values() if other is not trial and epoch in other.rows]


def rungs(grace_epochs: int, reduction_factor: float, max_epochs: int) -> list[int]:
    """Return the rungs of successive halving: the epochs grace_epochs x reduction_factor^k below max_epochs."""
    found, level = [], float(grace_epochs)
    while round(level) < max_epochs:
        found.append(round(level))
        level *= reduction_factor
    return list(dict.fromkeys(found))


class SuccessiveHalving(Scheduler):
    """ASHA (Li et al. 2020): at each rung, a trial stops unless its score is in the top 1/reduction_factor of earlier ones."""

    def __init__(self, *arguments: Any, max_epochs: int) -> None:
        super().__init__(*arguments)
        self.rungs = rungs(self.config.grace_epochs, self.config.reduction_factor, max_epochs)

    def on_result(self, trial: TrialState) -> Decision:
        """Compare with trials that reported the same rung earlier; the first trial at a rung continues."""
        epoch = trial.epochs_run
        if epoch not in self.rungs:
            return "continue"
        before = [
            self.score(other, epoch)
            for other in self.others_at(trial, epoch)
            if other.arrivals[epoch] < trial.arrivals[epoch]
        ]
        if not before:
            return "continue"
        return "stop" if self.score(trial, epoch) < self._cutoff(before) else "continue"

    def _cutoff(self, scores: Sequence[float]) -> float:
        """Return the minimum score of the top 1/reduction_factor, interpolated unless the lower score is -inf."""
        percent = 100 * (1 - 1 / self.config.reduction_factor)
        interpolated = np.percentile(scores, percent, method="lower") > -math.inf
        return float(np.percentile(scores, percent, method="linear" if interpolated else "higher"))


class MedianStopping(Scheduler):
    """Vizier's median rule (Golovin et al. 2017): stops a trial whose best score is below the median of the others' means."""

    def on_result(self, trial: TrialState) -> Decision:
        """Compare with the other trials that have reached this epoch, if there are at least min_trials."""
        epoch = trial.epochs_run
        others = self.others_at(trial, epoch)
        if epoch < self.config.grace_epochs or len(others) < self.config.min_trials:
            return "continue"
        means = [
            statistics.mean(self.score(other, before) for before in other.rows if before <= epoch) for other in others
        ]
        best = max(self.score(trial, before) for before in trial.rows)
        return "stop" if best < statistics.median(means) else "continue"


@dataclass(kw_only=True, frozen=True)
class Bracket:
    """Trials that are compared with each other."""

    numbers: frozenset[int]
    """Numbers of the trials in the study."""
    milestones: Sequence[int]
    """Epochs at which the worst trials stop."""


def brackets(config: SchedulerConfig, max_epochs: int, totals: Sequence[int], seed: int) -> list[Bracket]:
    """Return HyperBand's brackets for a study's trials (Li et al. 2018, algorithm 1), filled in order.

    The first bracket gives grace_epochs to many trials. Each further one gives reduction_factor times as many epochs to
    fewer trials. After config.brackets kinds, the sequence repeats. The trials of a bracket are sampled, because neighbors
    in a grid are similar. totals: number of trials at each start of the study. A larger number fills the last bracket and
    adds others; earlier trials keep their brackets.
    """
    factor, deepest = config.reduction_factor, 0
    while config.grace_epochs * factor ** (deepest + 1) <= max_epochs:
        deepest += 1
    kinds = list(range(deepest, max(-1, deepest - (config.brackets or deepest + 1)), -1))
    numbers: list[int] = []
    for total in totals:
        added = list(range(len(numbers) + 1, total + 1))
        random.Random(seed).shuffle(added)
        numbers += added
    found: list[Bracket] = []
    while numbers:
        halvings = kinds[len(found) % len(kinds)]
        size = math.ceil((deepest + 1) / (halvings + 1) * factor**halvings)
        milestones = rungs(max(1, round(max_epochs / factor**halvings)), factor, max_epochs)
        found.append(Bracket(numbers=frozenset(numbers[:size]), milestones=milestones[:halvings]))
        numbers = numbers[size:]
    return found


class HyperBand(Scheduler):
    """HyperBand (Li et al. 2018): the trials of a bracket wait for each other at milestones, where the best continue."""

    def __init__(self, *arguments: Any, max_epochs: int, totals: Sequence[int], seed: int) -> None:
        super().__init__(*arguments)
        self.brackets = brackets(self.config, max_epochs, totals, seed)

    def on_result(self, trial: TrialState) -> Decision:
        """Pause a trial at its bracket's milestones."""
        bracket = next(bracket for bracket in self.brackets if trial.plan.number in bracket.numbers)
        return "pause" if trial.epochs_run in bracket.milestones else "continue"

    def resolve_paused(self) -> None:
        """When all trials of a bracket have reached a milestone or ended, let its best 1/reduction_factor continue."""
        by_number = {trial.plan.number: trial for trial in self.record.trials.values()}
        for bracket in self.brackets:
            members = [by_number[number] for number in bracket.numbers if number in by_number]
            for milestone in bracket.milestones:
                coming = [t for t in members if t.state != "ended" and t.epochs_run < milestone]
                if coming or not (self.record.complete or len(members) == len(bracket.numbers)):
                    break
                there = [trial for trial in members if milestone in trial.rows]
                # In a tie, the longer trial continues: it has more epochs left to improve.
                there.sort(key=lambda t: (-self.score(t, milestone), -t.plan.recipe.epochs, t.plan.number))
                best = max(1, int(len(there) / self.config.reduction_factor))
                for place, trial in enumerate(there):
                    if trial.state == "paused" and trial.epochs_run == milestone:
                        self.record.decide(trial, "continue" if place < best else "stop")
                        if place < best:
                            trial.state = "waiting"
                        else:
                            self.record.end(trial)


TakeOver = Callable[[TrialState, TrialState, random.Random], object]
"""Plans that the first trial continues with the second trial's weights and perturbed settings."""


class PopulationBased(Scheduler):
    """Population-based training (Jaderberg et al. 2017).

    Every interval_epochs, the worst trials copy the weights and settings of the best, and perturb the settings. If not all
    trials can run at once, those with the fewest epochs run first.
    """

    def __init__(self, *arguments: Any, exploit: TakeOver, seed: int) -> None:
        super().__init__(*arguments)
        self.exploit = exploit
        self.seed = seed

    def on_result(self, trial: TrialState) -> Decision:
        """Compare with all trials that have reached the same epoch."""
        if trial.planned is not None:  # planned by a process that died before it recorded the decision
            return "restart"
        epoch = trial.epochs_run
        if epoch % self.config.interval_epochs:
            return "continue"
        peers = [t for t in [trial, *self.others_at(trial, epoch)] if t.error is None]
        count = min(math.ceil(len(peers) * self.config.quantile), len(peers) // 2)
        peers.sort(key=lambda peer: (self.score(peer, epoch), -peer.plan.number))
        # Trials at their last epoch are no sources: with their weights, no epoch would be left to train.
        best = [peer for peer in peers[len(peers) - count :] if peer.epochs_run < peer.plan.recipe.epochs]
        best = [peer for peer in best if peer.state != "ended" and self.score(peer, epoch) > -math.inf]
        if best and trial in peers[:count]:
            draws = random.Random(f"{self.seed}-{trial.plan.number}-{epoch}")
            self.exploit(trial, draws.choice(best), draws)
            return "restart"
        return self._yield(epoch)

    def on_restore(self, trial: TrialState) -> Decision:
        """Let the trial continue until its next interval."""
        return "continue"

    def _yield(self, epoch: int) -> Decision:
        behind = any(t.state == "waiting" and t.epochs_run < epoch for t in self.record.trials.values())
        return "restart" if behind else "continue"


class StudyScheduler(FIFOScheduler):
    """Passes Ray Tune's reports to the record, and applies the rule's decisions.

    For Ray Tune, a paused trial has ended: its process is reused, and the trial resumes later from its newest checkpoint as
    a new Ray Tune trial.
    """

    def __init__(self, record: StudyState, rule: Scheduler) -> None:
        super().__init__()
        self.record = record
        self.rule = rule

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Process a report; returns whether Ray Tune's trial continues or stops."""
        record = self.record.of(trial)
        if not self.record.add(record, result):
            return TrialScheduler.CONTINUE
        if ERROR in result:
            self.rule.resolve_paused()
            return TrialScheduler.STOP
        if record.epochs_run >= record.plan.recipe.epochs:  # ends by itself
            return TrialScheduler.CONTINUE
        if (
            record.decisions.get(record.epochs_run) is not None
        ):  # an epoch trained again, because its checkpoint was lost
            return TrialScheduler.CONTINUE
        return TrialScheduler.CONTINUE if self.decide(record, self.rule.on_result(record)) else TrialScheduler.STOP

    def decide(self, trial: TrialState, decision: Decision) -> bool:
        """Record and apply a decision about a running trial; returns whether it continues without a stop."""
        self.record.decide(trial, decision)
        return self.carry_out(trial, decision)

    def restore_trials(self) -> None:
        """Apply the decisions of a restored record; decide now if a trial's newest epoch has no decision."""
        for trial in self.record.trials.values():
            epoch = trial.epochs_run
            if trial.state == "ended" or not 0 < epoch < trial.plan.recipe.epochs:
                continue
            trial.state = "running"
            if (decided := trial.decisions.get(epoch)) is not None:
                running = self.carry_out(trial, decided)
            else:
                on_result = self.rule.on_restore if epoch in trial.decisions else self.rule.on_result
                running = self.decide(trial, on_result(trial))
            if running:
                trial.state = "waiting"
        self.rule.resolve_paused()

    def carry_out(self, trial: TrialState, decision: Decision) -> bool:
        """Set a running trial's state to the decision; returns whether it continues without a stop."""
        if decision == "continue":
            return True
        if decision == "stop":
            self.record.end(trial)
        else:
            trial.state = "paused" if decision == "pause" else "waiting"
        self.rule.resolve_paused()
        if decision == "pause" and trial.state == "waiting":
            trial.state = "running"
            return True
        trial.submitted = False
        return False

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record the end of a trial, unless it will resume later."""
        record = self.record.of(trial)
        if record.state == "running":
            self.record.end(record)
        self.rule.resolve_paused()

    def failed(self, trial: Trial) -> None:
        """Record a trial whose process died too often. Ray Tune's on_trial_error also runs for trials that are retried."""
        self.record.fail(self.record.of(trial), death_of(trial))
        self.rule.resolve_paused()


def build_rule(
    record: StudyState,
    config: SchedulerConfig,
    metric: str,
    mode: str,
    *,
    max_epochs: int,
    totals: Sequence[int],
    seed: int,
    exploit: TakeOver,
) -> Scheduler:
    """Return the rule of a scheduler's config.

    max_epochs: maximum epochs of any trial. totals: number of trials at each start of the study. Raises UserError if the
    grace period exceeds every trial.
    """
    check_grace(config, max_epochs)
    common = (record, config, metric, mode)
    if config.name == "asha":
        return SuccessiveHalving(*common, max_epochs=max_epochs)
    if config.name == "hyperband":
        return HyperBand(*common, max_epochs=max_epochs, totals=totals, seed=seed)
    if config.name == "median_stopping":
        return MedianStopping(*common)
    if config.name == "pbt":
        return PopulationBased(*common, exploit=exploit, seed=seed)
    return Scheduler(*common)


def check_grace(config: SchedulerConfig, max_epochs: int) -> None:
    """Raise UserError if every trial ends before the scheduler's first decision."""
    for key in ("grace_epochs", "interval_epochs"):
        used = ("pbt",) if key == "interval_epochs" else ("asha", "hyperband", "median_stopping")
        if config.name in used and getattr(config, key) > max_epochs:
            raise UserError(
                f"scheduler.{key} is {getattr(config, key)}, but the longest trial has {max_epochs} epochs; lower it"
            )
