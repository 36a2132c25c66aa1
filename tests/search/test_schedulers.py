"""Rules decide by the record alone: who stops, who waits for whom, who takes over, and the same when a study is taken up."""

import dataclasses
import itertools
import random

import pytest

from landmark.config import Recipe, SchedulerConfig, UserError
from landmark.search.schedulers import (
    HyperBand,
    MedianStopping,
    PopulationBased,
    Rule,
    SuccessiveHalving,
    brackets,
    build_rule,
    rungs,
)
from landmark.search.spaces.space import TrialPlan
from landmark.search.state.state import StudyRecord, TrialRecord

MAX = ("val_top1", "max")
ARRIVALS = itertools.count()


def record(count: int, epochs: int = 9) -> StudyRecord:
    made = StudyRecord()
    for number in range(1, count + 1):
        plan = TrialPlan(
            number=number, name=f"{number:03d}", point={}, parameters={}, recipe=Recipe(epochs=epochs), dataset=None
        )
        made.propose(plan).state = "running"
    return made


def come(trial: TrialRecord, epoch: int, value: float) -> TrialRecord:
    trial.rows[epoch] = {"val_top1": value, "val_loss": -value}
    trial.arrivals[epoch] = next(ARRIVALS)
    return trial


def test_rungs_multiply_from_the_grace_to_below_the_longest_trial():
    assert rungs(1, 3.0, 9) == [1, 3]
    assert rungs(2, 3.0, 60) == [2, 6, 18, 54]
    assert rungs(2, 1.5, 7) == [2, 3, 4]
    assert rungs(5, 2.0, 5) == []


@pytest.mark.parametrize(("metric", "mode", "sign"), [("val_top1", "max", 1), ("val_loss", "min", 1)])
def test_asha_stops_below_the_best_third_of_those_before(metric, mode, sign):
    found = record(4)
    rule = SuccessiveHalving(found, SchedulerConfig(name="asha"), metric, mode, max_epochs=9)
    first, second, third, fourth = found.trials.values()
    assert rule.judge(come(first, 1, 0.5)) == "go on"  # nobody before it
    assert rule.judge(come(second, 1, 0.4)) == "stop"
    assert rule.judge(come(third, 1, 0.6)) == "go on"
    assert rule.judge(come(fourth, 1, 0.52)) == "stop"  # the best third begins at 0.5 + 2/3 · …
    assert rule.judge(come(third, 2, 0.0)) == "go on"  # no rung
    # Judged again, as when the study's process was lost meanwhile, a trial is compared with those before it alone.
    assert rule.judge(first) == "go on"


def test_median_stopping_compares_the_best_with_the_others_means():
    found = record(4)
    rule = MedianStopping(found, SchedulerConfig(name="median_stopping", grace_epochs=2, min_trials=2), *MAX)
    good, fair, poor, late = found.trials.values()
    for epoch in (1, 2, 3):
        come(good, epoch, 0.6)
        come(fair, epoch, 0.4)
    assert rule.judge(come(poor, 1, 0.1)) == "go on"  # in its grace
    assert rule.judge(come(poor, 2, 0.2)) == "stop"
    come(late, 1, 0.7)
    assert rule.judge(come(late, 2, 0.1)) == "go on"  # its best is above the median


def test_brackets_hold_every_trial_once_and_begin_with_the_shortest():
    made = brackets(SchedulerConfig(name="hyperband"), 9, [30], seed=0)
    assert [len(bracket.numbers) for bracket in made] == [9, 5, 3, 9, 4]
    assert sorted(number for bracket in made for number in bracket.numbers) == list(range(1, 31))
    assert [bracket.milestones for bracket in made] == [[1, 3], [3], [], [1, 3], [3]]
    halving = brackets(SchedulerConfig(name="hyperband", brackets=1), 9, [18], seed=0)
    assert [(len(b.numbers), b.milestones) for b in halving] == [(9, [1, 3]), (9, [1, 3])]
    longer = brackets(SchedulerConfig(name="hyperband", grace_epochs=2), 9, [4], seed=0)
    assert longer[0].milestones == [3]


def test_hyperband_lets_the_best_go_on_when_all_have_come_and_never_before():
    found = record(9)
    rule = HyperBand(found, SchedulerConfig(name="hyperband"), *MAX, max_epochs=9, totals=[9], seed=0)
    trials = list(found.trials.values())
    for place, trial in enumerate(trials[:-1]):
        assert rule.judge(come(trial, 1, 0.1 * place)) == "pause"
        trial.state = "paused"
        rule.settle()
        assert trial.state == "paused"
    come(trials[-1], 1, 0.05).state = "paused"
    rule.settle()
    assert [trial.state for trial in trials] == ["ended"] * 5 + ["waiting"] * 3 + ["ended"]
    for value, trial in zip((0.3, 0.2, 0.1), trials[5:8], strict=True):
        assert rule.judge(come(trial, 2, 0.5)) == "go on"
        assert rule.judge(come(trial, 3, value)) == "pause"
        trial.state = "paused"
    rule.settle()
    assert [trial.state for trial in trials[5:8]] == ["waiting", "ended", "ended"]
    rule.settle()  # what was decided stays
    assert trials[5].state == "waiting"


def test_of_equals_hyperband_keeps_the_longer():
    found = record(2)
    short, long = found.trials.values()
    short.plan = dataclasses.replace(short.plan, recipe=Recipe(epochs=3))
    rule = HyperBand(found, SchedulerConfig(name="hyperband", brackets=1), *MAX, max_epochs=9, totals=[2], seed=0)
    for trial in (short, long):
        come(trial, 1, 0.4).state = "paused"
    rule.settle()
    assert (short.state, long.state) == ("ended", "waiting")


def test_hyperband_does_not_wait_for_trials_that_failed():
    found = record(9)
    rule = HyperBand(found, SchedulerConfig(name="hyperband"), *MAX, max_epochs=9, totals=[9], seed=0)
    trials = list(found.trials.values())
    found.fail(trials[0], "no memory")
    for place, trial in enumerate(trials[1:]):
        come(trial, 1, 0.1 * place).state = "paused"
    rule.settle()
    assert sum(trial.state == "waiting" for trial in trials) == 2  # a third of the eight that came


def test_the_worst_of_a_population_take_over_the_best_at_the_same_epoch():
    found, taken = record(4), []

    def take_over(trial, source, draws: random.Random) -> None:
        taken.append((trial.plan.name, source.plan.name))

    config = SchedulerConfig(name="pbt", interval_epochs=2, quantile=0.25)
    rule = PopulationBased(found, config, *MAX, take_over=take_over, seed=0)
    one, two, three, four = found.trials.values()
    for trial, value in ((one, 0.5), (two, 0.4), (three, 0.9)):
        come(trial, 1, value)
        come(trial, 2, value)
    assert rule.judge(come(four, 1, 0.0)) == "go on"  # no interval
    assert rule.judge(come(four, 2, 0.1)) == "restart"
    assert taken == [("004", "003")]
    assert rule.judge(three) == "go on"
    found.end(three)  # nobody takes over from a trial that is over: the weights would have nothing to learn with
    assert rule.judge(two) == "go on"
    found.trials["001"].state = "waiting"
    one.rows.pop(2)
    assert rule.judge(come(two, 4, 0.4)) == "restart"  # it makes room for the one that is behind
    assert rule.judge_again(four) == "go on"


def test_a_grace_beyond_the_longest_trial_is_a_mistake():
    def build(**config) -> Rule:
        return build_rule(
            record(1), SchedulerConfig(**config), *MAX, max_epochs=3, totals=[1], seed=0, take_over=lambda *_: None
        )

    assert type(build(name="none")) is Rule
    assert type(build(name="asha")) is SuccessiveHalving
    with pytest.raises(UserError, match="scheduler.grace_epochs is 4, but the longest trial has 3 epochs"):
        build(name="asha", grace_epochs=4)
    with pytest.raises(UserError, match="scheduler.interval_epochs is 4"):
        build(name="pbt", interval_epochs=4)
