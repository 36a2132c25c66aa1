"""The rules of landmark before Ray Tune's schedulers replaced them (ASHA, HyperBand, median stopping), as a reference."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from landmark.config import SchedulerConfig
from landmark.evaluation.ranking import score
from landmark.search.schedulers.base import Scheduler
from landmark.search.state.state import Decision, StudyState, TrialState


class EarlierRule(Scheduler):
    """Calls a rule as the earlier versions did, after each report and each end of a trial."""

    def judge(self, trial: TrialState) -> Decision:
        return "continue"

    def resolve_paused(self) -> None:
        pass

    def on_result(self, trial: TrialState) -> None:
        self.decide(trial, self.judge(trial))
        self.resolve_paused()

    def on_end(self, trial: TrialState) -> None:
        self.resolve_paused()

    def on_all_proposed(self) -> None:
        self.resolve_paused()

    def score(self, trial: TrialState, epoch: int) -> float:
        return score(trial.rows[epoch][self.metric], self.mode)

    def others_at(self, trial: TrialState, epoch: int) -> list[TrialState]:
        return [other for other in self.record.trials.values() if other is not trial and epoch in other.rows]


def rungs(grace_epochs: int, reduction_factor: float, max_epochs: int) -> list[int]:
    found, level = [], float(grace_epochs)
    while round(level) < max_epochs:
        found.append(round(level))
        level *= reduction_factor
    return list(dict.fromkeys(found))


class SuccessiveHalving(EarlierRule):
    def __init__(self, *arguments: Any, max_epochs: int) -> None:
        super().__init__(*arguments)
        self.rungs = rungs(self.config.grace_epochs, self.config.reduction_factor, max_epochs)

    def judge(self, trial: TrialState) -> Decision:
        epoch = trial.epochs_run
        if epoch not in self.rungs:
            return "continue"
        before = [self.score(other, epoch) for other in self.others_at(trial, epoch)]
        if not before:
            return "continue"
        return "stop" if self.score(trial, epoch) < self._cutoff(before) else "continue"

    def _cutoff(self, scores: Sequence[float]) -> float:
        percent = 100 * (1 - 1 / self.config.reduction_factor)
        interpolated = np.percentile(scores, percent, method="lower") > -math.inf
        return float(np.percentile(scores, percent, method="linear" if interpolated else "higher"))


class MedianStopping(EarlierRule):
    def judge(self, trial: TrialState) -> Decision:
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
    numbers: frozenset[int]
    milestones: Sequence[int]


def brackets(config: SchedulerConfig, max_epochs: int, totals: Sequence[int], seed: int) -> list[Bracket]:
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


class HyperBand(EarlierRule):
    def __init__(self, *arguments: Any, max_epochs: int, seed: int) -> None:
        super().__init__(*arguments)
        self.max_epochs, self.seed = max_epochs, seed
        self.totals: list[int] = []
        self.brackets: list[Bracket] = []

    def begin(self, total: int) -> None:
        self.totals.append(total)
        self.brackets = brackets(self.config, self.max_epochs, self.totals, self.seed)

    def judge(self, trial: TrialState) -> Decision:
        bracket = next(bracket for bracket in self.brackets if trial.plan.number in bracket.numbers)
        return "pause" if trial.epochs_run in bracket.milestones else "continue"

    def resolve_paused(self) -> None:
        by_number = {trial.plan.number: trial for trial in self.record.trials.values()}
        for bracket in self.brackets:
            members = [by_number[number] for number in bracket.numbers if number in by_number]
            for milestone in bracket.milestones:
                coming = [t for t in members if t.state != "ended" and t.epochs_run < milestone]
                if coming or not (self.record.complete or len(members) == len(bracket.numbers)):
                    break
                there = [trial for trial in members if milestone in trial.rows]
                there.sort(key=lambda t: (-self.score(t, milestone), -t.plan.recipe.epochs, t.plan.number))
                best = max(1, int(len(there) / self.config.reduction_factor))
                for place, trial in enumerate(there):
                    if trial.state == "paused" and trial.epochs_run == milestone:
                        self.decide(trial, "continue" if place < best else "stop")


def build_earlier(
    record: StudyState, config: SchedulerConfig, metric: str, mode: str, *, max_epochs: int, seed: int, exploit: object
) -> Scheduler:
    """Return the earlier rule of a config."""
    common = (record, config, metric, mode)
    if config.name == "asha":
        return SuccessiveHalving(*common, max_epochs=max_epochs)
    if config.name == "hyperband":
        return HyperBand(*common, max_epochs=max_epochs, seed=seed)
    return MedianStopping(*common)
