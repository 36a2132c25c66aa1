"""Tests that schedulers decide only by the recorded trials, and decide the same when a study is resumed."""

import dataclasses
import itertools
import random

import pytest

from landmark.config import Recipe, SchedulerConfig, UserError
from landmark.search.schedulers import (
    HyperBand,
    MedianStopping,
    PopulationBased,
    Scheduler,
    SuccessiveHalving,
    brackets,
    build_rule,
    rungs,
)
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.state import StudyState, TrialState

MAX = ("val_top1", "max")
ARRIVALS = itertools.count()


def record(count: int, epochs: int = 9) -> StudyState:
    state = StudyState()
    for number in range(1, count + 1):
        plan = TrialSpec(
            number=number, name=f"{number:03d}", point={}, parameters={}, recipe=Recipe(epochs=epochs), dataset=None
        )
        state.propose(plan).state = "running"
    return state


def report(trial: TrialState, epoch: int, value: float) -> TrialState:
    trial.rows[epoch] = {"val_top1": value, "val_loss": -value}
    trial.arrivals[epoch] = next(ARRIVALS)
    return trial


def test_rungs_grow_from_the_grace_period_to_below_the_longest_trial():
    assert rungs(1, 3.0, 9) == [1, 3]
    assert rungs(2, 3.0, 60) == [2, 6, 18, 54]
    assert rungs(2, 1.5, 7) == [2, 3, 4]
    assert rungs(5, 2.0, 5) == []


@pytest.mark.parametrize(("metric", "mode", "sign"), [("val_top1", "max", 1), ("val_loss", "min", 1)])
def test_asha_stops_trials_below_the_best_third_of_earlier_trials(metric, mode, sign):
    found = record(4)
    rule = SuccessiveHalving(found, SchedulerConfig(name="asha"), metric, mode, max_epochs=9)
    first, second, third, fourth = found.trials.values()
    assert rule.on_result(report(first, 1, 0.5)) == "continue"  # no earlier trial
    assert rule.on_result(report(second, 1, 0.4)) == "stop"
    assert rule.on_result(report(third, 1, 0.6)) == "continue"
    assert rule.on_result(report(fourth, 1, 0.52)) == "stop"  # the best third begins at 0.5 + 2/3 · …
    assert rule.on_result(report(third, 2, 0.0)) == "continue"  # no rung
    # Evaluated again, as after the loss of the study's process, a trial is compared only with earlier ones.
    assert rule.on_result(first) == "continue"


def test_median_stopping_compares_the_best_value_with_mean_values():
    found = record(4)
    rule = MedianStopping(found, SchedulerConfig(name="median_stopping", grace_epochs=2, min_trials=2), *MAX)
    good, fair, poor, late = found.trials.values()
    for epoch in (1, 2, 3):
        report(good, epoch, 0.6)
        report(fair, epoch, 0.4)
    assert rule.on_result(report(poor, 1, 0.1)) == "continue"  # in its grace period
    assert rule.on_result(report(poor, 2, 0.2)) == "stop"
    report(late, 1, 0.7)
    assert rule.on_result(report(late, 2, 0.1)) == "continue"  # its best is above the median


def test_brackets_have_every_trial_once_and_start_with_the_shortest():
    created = brackets(SchedulerConfig(name="hyperband"), 9, [30], seed=0)
    assert [len(bracket.numbers) for bracket in created] == [9, 5, 3, 9, 4]
    assert sorted(number for bracket in created for number in bracket.numbers) == list(range(1, 31))
    assert [bracket.milestones for bracket in created] == [[1, 3], [3], [], [1, 3], [3]]
    halving = brackets(SchedulerConfig(name="hyperband", brackets=1), 9, [18], seed=0)
    assert [(len(b.numbers), b.milestones) for b in halving] == [(9, [1, 3]), (9, [1, 3])]
    longer = brackets(SchedulerConfig(name="hyperband", grace_epochs=2), 9, [4], seed=0)
    assert longer[0].milestones == [3]


def test_hyperband_promotes_trials_only_after_all_have_reported():
    found = record(9)
    rule = HyperBand(found, SchedulerConfig(name="hyperband"), *MAX, max_epochs=9, totals=[9], seed=0)
    trials = list(found.trials.values())
    for index, trial in enumerate(trials[:-1]):
        assert rule.on_result(report(trial, 1, 0.1 * index)) == "pause"
        trial.state = "paused"
        rule.resolve_paused()
        assert trial.state == "paused"
    report(trials[-1], 1, 0.05).state = "paused"
    rule.resolve_paused()
    assert [trial.state for trial in trials] == ["ended"] * 5 + ["waiting"] * 3 + ["ended"]
    for value, trial in zip((0.3, 0.2, 0.1), trials[5:8], strict=True):
        assert rule.on_result(report(trial, 2, 0.5)) == "continue"
        assert rule.on_result(report(trial, 3, value)) == "pause"
        trial.state = "paused"
    rule.resolve_paused()
    assert [trial.state for trial in trials[5:8]] == ["waiting", "ended", "ended"]
    rule.resolve_paused()  # decisions do not change
    assert trials[5].state == "waiting"


def test_hyperband_keeps_the_longer_of_equal_trials():
    found = record(2)
    short, long = found.trials.values()
    short.plan = dataclasses.replace(short.plan, recipe=Recipe(epochs=3))
    rule = HyperBand(found, SchedulerConfig(name="hyperband", brackets=1), *MAX, max_epochs=9, totals=[2], seed=0)
    for trial in (short, long):
        report(trial, 1, 0.4).state = "paused"
    rule.resolve_paused()
    assert (short.state, long.state) == ("ended", "waiting")


def test_hyperband_does_not_wait_for_trials_that_failed():
    found = record(9)
    rule = HyperBand(found, SchedulerConfig(name="hyperband"), *MAX, max_epochs=9, totals=[9], seed=0)
    trials = list(found.trials.values())
    found.fail(trials[0], "no memory")
    for index, trial in enumerate(trials[1:]):
        report(trial, 1, 0.1 * index).state = "paused"
    rule.resolve_paused()
    assert sum(trial.state == "waiting" for trial in trials) == 2  # a third of the eight that reported


def test_pbt_exploits_the_best_trial_at_the_same_epoch():
    found, exploits = record(4), []

    def exploit(trial, source, rng: random.Random) -> None:
        exploits.append((trial.plan.name, source.plan.name))

    config = SchedulerConfig(name="pbt", interval_epochs=2, quantile=0.25)
    rule = PopulationBased(found, config, *MAX, exploit=exploit, seed=0)
    one, two, three, four = found.trials.values()
    for trial, value in ((one, 0.5), (two, 0.4), (three, 0.9)):
        report(trial, 1, value)
        report(trial, 2, value)
    assert rule.on_result(report(four, 1, 0.0)) == "continue"  # not the end of an interval
    assert rule.on_result(report(four, 2, 0.1)) == "restart"
    assert exploits == [("004", "003")]
    assert rule.on_result(three) == "continue"
    found.end(three)  # an ended trial is not exploited: its weights have no epochs left
    assert rule.on_result(two) == "continue"
    found.trials["001"].state = "waiting"
    one.rows.pop(2)
    assert rule.on_result(report(two, 4, 0.4)) == "restart"  # it frees resources for the trial that is behind
    assert rule.on_restore(four) == "continue"


def test_a_grace_period_beyond_the_longest_trial_is_an_error():
    def build(**config) -> Scheduler:
        return build_rule(
            record(1), SchedulerConfig(**config), *MAX, max_epochs=3, totals=[1], seed=0, exploit=lambda *_: None
        )

    assert type(build(name="none")) is Scheduler
    assert type(build(name="asha")) is SuccessiveHalving
    with pytest.raises(UserError, match="scheduler.grace_epochs is 4, but the longest trial has 3 epochs"):
        build(name="asha", grace_epochs=4)
    with pytest.raises(UserError, match="scheduler.interval_epochs is 4"):
        build(name="pbt", interval_epochs=4)
