"""Schedulers: which trials end before their last epoch, wait for others, or go on with another's weights.

All decide by the study's record alone, so that a study that another process takes up goes on as if nothing had happened:
Ray Tune's own schedulers lose their rungs at a restore, and take over and pause through Ray Tune's checkpoints, which a trial
of several workers does not have.
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
from landmark.search.record import ERROR, StudyRecord, TrialRecord, Verdict, death_of


class Rule:
    """Every trial runs to its end; the base of the other rules."""

    def __init__(self, record: StudyRecord, config: SchedulerConfig, metric: str, mode: str) -> None:
        self.record = record
        self.config = config
        self.metric = metric
        self.mode = mode

    def judge(self, trial: TrialRecord) -> Verdict:
        """Return what becomes of a trial that has come to the end of an epoch, not of its last one."""
        return "go on"

    def judge_again(self, trial: TrialRecord) -> Verdict:
        """Return what becomes of a trial at a restart whose journal is from before decisions were recorded."""
        return self.judge(trial)

    def settle(self) -> None:
        """Decide on paused trials: those that go on are set to waiting, the others end."""

    def score(self, trial: TrialRecord, epoch: int) -> float:
        """Return a trial's score at an epoch: greater is better, -inf for a metric that is not finite."""
        return score(trial.rows[epoch][self.metric], self.mode)

    def best_epoch(self, trial: TrialRecord) -> int:
        """Return a trial's best epoch, of equals the first."""
        return trial.best_epochs(self.metric, self.mode)[0]

    def others_at(self, trial: TrialRecord, epoch: int) -> list[TrialRecord]:
        """Return the other trials that have come to an epoch."""
        return [other for other in self.record.trials.values() if other is not trial and epoch in other.rows]


def rungs(grace_epochs: int, reduction_factor: float, max_epochs: int) -> list[int]:
    """Return the epochs at which successive halving judges: grace_epochs x reduction_factor^k below max_epochs."""
    found, level = [], float(grace_epochs)
    while round(level) < max_epochs:
        found.append(round(level))
        level *= reduction_factor
    return list(dict.fromkeys(found))


class SuccessiveHalving(Rule):
    """ASHA (Li et al. 2020): at each rung a trial ends unless it is among the best 1/reduction_factor of those before it."""

    def __init__(self, *arguments: Any, max_epochs: int) -> None:
        super().__init__(*arguments)
        self.rungs = rungs(self.config.grace_epochs, self.config.reduction_factor, max_epochs)

    def judge(self, trial: TrialRecord) -> Verdict:
        """Compare with those whose reports of the same rung the study took earlier; the first ones there go on."""
        epoch = trial.epochs_run
        if epoch not in self.rungs:
            return "go on"
        before = [
            self.score(other, epoch)
            for other in self.others_at(trial, epoch)
            if other.arrivals[epoch] < trial.arrivals[epoch]
        ]
        if not before:
            return "go on"
        return "stop" if self.score(trial, epoch) < self._cutoff(before) else "go on"

    def _cutoff(self, scores: Sequence[float]) -> float:
        """Return the score at which the best 1/reduction_factor begin: between two scores, unless the lower one is -inf."""
        percent = 100 * (1 - 1 / self.config.reduction_factor)
        interpolated = np.percentile(scores, percent, method="lower") > -math.inf
        return float(np.percentile(scores, percent, method="linear" if interpolated else "higher"))


class MedianStopping(Rule):
    """Vizier's rule (Golovin et al. 2017): a trial ends whose best is below the median of the others' means so far."""

    def judge(self, trial: TrialRecord) -> Verdict:
        """Compare with the others that have come as far, once there are min_trials of them."""
        epoch = trial.epochs_run
        others = self.others_at(trial, epoch)
        if epoch < self.config.grace_epochs or len(others) < self.config.min_trials:
            return "go on"
        means = [
            statistics.mean(self.score(other, before) for before in other.rows if before <= epoch) for other in others
        ]
        best = max(self.score(trial, before) for before in trial.rows)
        return "stop" if best < statistics.median(means) else "go on"


@dataclass(kw_only=True, frozen=True)
class Bracket:
    """Trials that are judged together."""

    numbers: frozenset[int]
    """Their numbers in the study."""
    milestones: Sequence[int]
    """Epochs at which the worst of them end."""


def brackets(config: SchedulerConfig, max_epochs: int, totals: Sequence[int], seed: int) -> list[Bracket]:
    """Return HyperBand's brackets for a study's trials (Li et al. 2018, algorithm 1), filled one after the other.

    The first gives grace_epochs to many trials, each further one gives reduction_factor times as much to fewer; after the
    last one of config.brackets kinds it begins again. The trials of a bracket are sampled, because neighbours in a grid
    are alike. totals: the number of trials that the study had at each of its starts. A greater number fills the last
    bracket and adds others; the trials from before keep their brackets.
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


class HyperBand(Rule):
    """HyperBand (Li et al. 2018): trials of a bracket wait for each other at its milestones; the best of them go on."""

    def __init__(self, *arguments: Any, max_epochs: int, totals: Sequence[int], seed: int) -> None:
        super().__init__(*arguments)
        self.brackets = brackets(self.config, max_epochs, totals, seed)

    def judge(self, trial: TrialRecord) -> Verdict:
        """Let a trial wait at its bracket's milestones."""
        bracket = next(bracket for bracket in self.brackets if trial.plan.number in bracket.numbers)
        return "pause" if trial.epochs_run in bracket.milestones else "go on"

    def settle(self) -> None:
        """Where all of a bracket have come to a milestone or ended, let its best 1/reduction_factor go on."""
        by_number = {trial.plan.number: trial for trial in self.record.trials.values()}
        for bracket in self.brackets:
            members = [by_number[number] for number in bracket.numbers if number in by_number]
            for milestone in bracket.milestones:
                coming = [t for t in members if t.state != "ended" and t.epochs_run < milestone]
                if coming or not (self.record.complete or len(members) == len(bracket.numbers)):
                    break
                there = [trial for trial in members if milestone in trial.rows]
                # Of equals the longer one goes on: with more epochs to come a network is as good so far, and better later.
                there.sort(key=lambda t: (-self.score(t, milestone), -t.plan.recipe.epochs, t.plan.number))
                best = max(1, int(len(there) / self.config.reduction_factor))
                for place, trial in enumerate(there):
                    if trial.state == "paused" and trial.epochs_run == milestone:
                        self.record.decide(trial, "go on" if place < best else "stop")
                        if place < best:
                            trial.state = "waiting"
                        else:
                            self.record.end(trial)


TakeOver = Callable[[TrialRecord, TrialRecord, random.Random], object]
"""Plans that the first trial continues with the second one's weights and changed settings."""


class PopulationBased(Rule):
    """Population-based training (Jaderberg et al. 2017): every interval_epochs the worst take over the best's weights and
    settings, and change these. With less room than trials, those behind run first.
    """

    def __init__(self, *arguments: Any, take_over: TakeOver, seed: int) -> None:
        super().__init__(*arguments)
        self.take_over = take_over
        self.seed = seed

    def judge(self, trial: TrialRecord) -> Verdict:
        """Compare with all that have come to the same epoch."""
        if trial.planned is not None:  # by a process that was lost before it recorded the decision
            return "restart"
        epoch = trial.epochs_run
        if epoch % self.config.interval_epochs:
            return "go on"
        peers = [t for t in [trial, *self.others_at(trial, epoch)] if t.error is None]
        count = min(math.ceil(len(peers) * self.config.quantile), len(peers) // 2)
        peers.sort(key=lambda peer: (self.score(peer, epoch), -peer.plan.number))
        # Not from one that has come to its last epoch: its weights would have nothing left to learn with.
        best = [peer for peer in peers[len(peers) - count :] if peer.epochs_run < peer.plan.recipe.epochs]
        best = [peer for peer in best if peer.state != "ended" and self.score(peer, epoch) > -math.inf]
        if best and trial in peers[:count]:
            draws = random.Random(f"{self.seed}-{trial.plan.number}-{epoch}")
            self.take_over(trial, draws.choice(best), draws)
            return "restart"
        return self._yield(epoch)

    def judge_again(self, trial: TrialRecord) -> Verdict:
        """Let it go on: its next interval will tell."""
        return "go on"

    def _yield(self, epoch: int) -> Verdict:
        behind = any(t.state == "waiting" and t.epochs_run < epoch for t in self.record.trials.values())
        return "restart" if behind else "go on"


class StudyScheduler(FIFOScheduler):
    """Hands each of Ray Tune's reports to the record, and carries out what the rule says.

    To Ray Tune a pause is an end: the trial's process serves another one, and the trial goes on later from its own newest
    checkpoint, as a new trial of Ray Tune's.
    """

    def __init__(self, record: StudyRecord, rule: Rule) -> None:
        super().__init__()
        self.record = record
        self.rule = rule

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Take a report; returns whether Ray Tune's trial goes on."""
        record = self.record.of(trial)
        if not self.record.add(record, result):
            return TrialScheduler.CONTINUE
        if ERROR in result:
            self.rule.settle()
            return TrialScheduler.STOP
        if record.epochs_run >= record.plan.recipe.epochs:  # ends by itself
            return TrialScheduler.CONTINUE
        if (
            record.decisions.get(record.epochs_run) is not None
        ):  # an epoch trained again, because its checkpoint was lost
            return TrialScheduler.CONTINUE
        return TrialScheduler.CONTINUE if self.decide(record, self.rule.judge(record)) else TrialScheduler.STOP

    def decide(self, trial: TrialRecord, verdict: Verdict) -> bool:
        """Record what the rule says of a running trial and carry it out; returns whether it continues without a stop."""
        self.record.decide(trial, verdict)
        return self.carry_out(trial, verdict)

    def take_up(self) -> None:
        """Carry out the decisions of a restored record; a trial whose newest epoch has none is judged now."""
        for trial in self.record.trials.values():
            epoch = trial.epochs_run
            if trial.state == "ended" or not 0 < epoch < trial.plan.recipe.epochs:
                continue
            trial.state = "running"
            if (decided := trial.decisions.get(epoch)) is not None:
                running = self.carry_out(trial, decided)
            else:
                judge = self.rule.judge_again if epoch in trial.decisions else self.rule.judge
                running = self.decide(trial, judge(trial))
            if running:
                trial.state = "waiting"
        self.rule.settle()

    def carry_out(self, trial: TrialRecord, verdict: Verdict) -> bool:
        """Bring a running trial's state to what the rule says; returns whether it goes on without a stop."""
        if verdict == "go on":
            return True
        if verdict == "stop":
            self.record.end(trial)
        else:
            trial.state = "paused" if verdict == "pause" else "waiting"
        self.rule.settle()
        if verdict == "pause" and trial.state == "waiting":
            trial.state = "running"
            return True
        trial.handed = False
        return False

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Note the end of a trial, unless it is to go on later."""
        record = self.record.of(trial)
        if record.state == "running":
            self.record.end(record)
        self.rule.settle()

    def failed(self, trial: Trial) -> None:
        """Note a trial whose process died too often. Ray Tune's own on_trial_error is also called for one that is tried again."""
        self.record.fail(self.record.of(trial), death_of(trial))
        self.rule.settle()


def build_rule(
    record: StudyRecord,
    config: SchedulerConfig,
    metric: str,
    mode: str,
    *,
    max_epochs: int,
    totals: Sequence[int],
    seed: int,
    take_over: TakeOver,
) -> Rule:
    """Return the rule that a scheduler's config names.

    max_epochs: the most of any trial. totals: trials of the study at each of its starts. Raises UserError for a grace that
    no trial outlives.
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
        return PopulationBased(*common, take_over=take_over, seed=seed)
    return Rule(*common)


def check_grace(config: SchedulerConfig, max_epochs: int) -> None:
    """Raise UserError where every trial ends before the scheduler would judge it."""
    for key in ("grace_epochs", "interval_epochs"):
        used = ("pbt",) if key == "interval_epochs" else ("asha", "hyperband", "median_stopping")
        if config.name in used and getattr(config, key) > max_epochs:
            raise UserError(
                f"scheduler.{key} is {getattr(config, key)}, but the longest trial has {max_epochs} epochs; lower it"
            )
