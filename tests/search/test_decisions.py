"""Tests that scheduler decisions about complete studies survive the loss of a driver; Ray's calls are simulated."""

import json
import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark.config import SchedulerConfig, UserError
from landmark.search.schedulers.logical_trials import LogicalTrial
from landmark.search.schedulers.ray_schedulers import HyperBand
from landmark.search.state.state import FIRST_STEP, REPORTED, WEIGHTS
from tests.support.earlier_schedulers import build_earlier
from tests.support.simulated_study import EPOCHS, SimulatedStudy, decided, ended, learning_curves

CONFIGS = [
    SchedulerConfig(name="none"),
    SchedulerConfig(name="asha", reduction_factor=2),
    SchedulerConfig(name="hyperband"),
    SchedulerConfig(name="median_stopping", min_trials=2),
    SchedulerConfig(name="pbt", interval_epochs=2, quantile=0.5),
    SchedulerConfig(name="ray.tune.schedulers:AsyncHyperBandScheduler", options={"brackets": 2, "reduction_factor": 2}),
    SchedulerConfig(name="ray.tune.schedulers:HyperBandForBOHB"),
    SchedulerConfig(
        name="ray.tune.schedulers:MedianStoppingRule",
        options={"hard_stop": False, "grace_period": 2, "min_samples_required": 2},
    ),
]


def exploits(events: list[dict]) -> list[tuple]:
    return [(e["trial"], e["source"], e["epoch"], e["point"]) for e in events if e["event"] == "exploit planned"]


FINITE = st.floats(0, 1)
METRICS = st.lists(st.one_of(FINITE, st.sampled_from([math.nan, math.inf, -math.inf])), min_size=72, max_size=72)


def by_epoch(metrics: list[float]) -> dict[tuple[int, int], float]:
    return {(1 + index // EPOCHS, 1 + index % EPOCHS): value for index, value in enumerate(metrics)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@settings(max_examples=15, deadline=None)
@given(metrics=METRICS, seed=st.integers(0, 10**6), data=st.data())
def test_decisions_are_the_same_after_a_restart_at_any_event(config, metrics, seed, data):
    events: list[dict] = []
    SimulatedStudy(config, 8, events).run(by_epoch(metrics), 3, random.Random(seed))
    complete = decided(events)
    assert ended(events) == {f"{number:03d}" for number in range(1, 9)}
    for length in data.draw(st.lists(st.integers(1, len(events)), min_size=12, max_size=12)):
        prefix = events[:length]
        restored = SimulatedStudy(config, 8, prefix)
        for key, decisions in decided(prefix).items():
            assert decisions == complete[key][: len(decisions)]
        assert exploits(prefix) == exploits(events)[: len(exploits(prefix))]
        assert {trial.plan.name for trial in restored.record.trials.values() if trial.state == "ended"} == ended(prefix)
    restored.run(by_epoch(metrics), 3, random.Random(seed + 1))
    for key, decisions in decided(events[:length]).items():
        assert decided(prefix)[key][: len(decisions)] == decisions


def started(config: SchedulerConfig, events: list[dict], count: int, **options) -> tuple[SimulatedStudy, list]:
    """Return a study of `count` running trials, and Ray Tune's trials."""
    study = SimulatedStudy(config, count, events, **options)
    study.scheduler.begin(count)
    handles = []
    for _ in range(count):
        trial = study.record.propose(study.proposals.next())
        study.rule.on_propose(trial)
        trial.state = "running"
        handles.append(SimpleNamespace(config={"trial": {"name": trial.plan.name}}, error_file=None))
    return study, handles


def test_a_restart_keeps_earlier_decisions_of_the_median_rule():
    config, events = SchedulerConfig(name="median_stopping", min_trials=2), []
    study, handles = started(config, events, 3)
    for values in ((0.5, 0.4, 0.45), (0.9, 0.8)):  # the third trial has run one epoch when the process is lost
        for number, (handle, value) in enumerate(zip(handles, values, strict=False), 1):
            epoch = study.record.of(handle).epochs_run + 1
            study.report([handle], handle, {(number, epoch): value}, random.Random(0))
    assert decided(events)["003", 1] == ["continue"]
    # Compared now, its 0.45 would be below the other trials' means, 0.7 and 0.6.
    restored = SimulatedStudy(config, 3, list(events))
    assert restored.record.trials["003"].state == "waiting" and restored.events == events


def as_earlier(events: list[dict], *keys: str) -> list[dict]:
    """Return a journal as an earlier version wrote it: without the scheduler's identity and the end of the proposals."""
    kept = [event for event in events if event["event"] != "all proposed"]
    return [{key: value for key, value in event.items() if key not in ("scheduler", *keys)} for event in kept]


def test_a_journal_without_decisions_is_decided_when_restored():
    config, events = SchedulerConfig(name="asha", reduction_factor=2), []
    study, _ = started(config, events, 2)
    for trial, value in zip(study.record.trials.values(), (0.5, 0.4), strict=True):
        result = {"epoch": 1, "val_top1": value, REPORTED: 1.0, FIRST_STEP: 0.0, WEIGHTS: 1, "pid": 1}
        study.record.add(trial, result)
    old = SimulatedStudy(config, 2, as_earlier(events, "trials"))
    assert [trial.state for trial in old.record.trials.values()] == ["waiting", "ended"]
    population = SimulatedStudy(
        SchedulerConfig(name="pbt", interval_epochs=1, quantile=0.5), 2, as_earlier(events, "trials")
    )
    assert not exploits(population.events)  # the next interval decides


@pytest.mark.parametrize("config", CONFIGS[1:4], ids=lambda config: config.name)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), fraction=st.floats(0.05, 1), data=st.data())
def test_a_study_of_an_earlier_version_resumes_with_its_decisions(config, seed, fraction, data):
    """The rules were landmark's own. The decisions of the journal are kept, and Ray Tune's schedulers decide the others."""
    curves, complete = learning_curves(20, EPOCHS, seed), []
    SimulatedStudy(config, 20, complete, build=build_earlier).run(curves, 3, random.Random(seed))
    events = as_earlier(complete)[: max(1, round(fraction * len(complete)))]
    length = len(events)
    before, over = decided(events), ended(events)
    SimulatedStudy(config, 20, events).run(curves, 3, random.Random(seed))
    after = decided(events)
    assert {key: after[key][: len(before[key])] for key in before} == before
    assert over <= ended(events) and len(ended(events)) == 20
    reported = [event["trial"] for event in events[length:] if event["event"] == "report"]
    assert not over & set(reported)
    if config.name == "asha":
        reference = as_earlier(complete)[:length]
        SimulatedStudy(config, 20, reference, build=build_earlier).run(curves, 3, random.Random(seed))
        assert after == decided(reference)
    cut = data.draw(st.integers(1, len(events)))
    SimulatedStudy(config, 20, events[:cut]).run(curves, 3, random.Random(seed))


def changed(events: list[dict], kind: str, **values) -> list[dict]:
    """Return a copy of a journal with other values in the first event of a kind that has others."""
    events = json.loads(json.dumps(events))
    others = (event for event in events if event["event"] == kind and any(event[k] != v for k, v in values.items()))
    next(others).update(values)
    return events


@pytest.mark.parametrize("config", CONFIGS[1:4], ids=lambda config: config.name)
def test_a_restore_stops_at_the_first_different_decision(config):
    events: list[dict] = []
    SimulatedStudy(config, 12, events).run(learning_curves(12, EPOCHS, 0), 3, random.Random(0))
    SimulatedStudy(config, 12, list(events))
    other = changed(events, "decision", decision="continue")
    line = next(n for n, (a, b) in enumerate(zip(events, other, strict=True), 1) if a != b)
    trial, epoch = events[line - 1]["trial"], events[line - 1]["epoch"]
    message = f"00001.jsonl: line {line}: the journal has the decision 'continue' about {trial} at epoch {epoch}, but "
    with pytest.raises(UserError, match=message) as error:
        SimulatedStudy(config, 12, other)
    assert "\n" not in str(error.value) and "start a study with another --name" in str(error.value)
    assert "written with" not in str(error.value)
    missing = [event for n, event in enumerate(events, 1) if n != line]
    with pytest.raises(UserError, match=r"line \d+: the journal has (no|the) decision.* about "):
        SimulatedStudy(config, 12, missing)
    for event in other:
        event.update({"scheduler": "x:Y, Ray 2.59.0"} if event["event"] == "driver" else {})
    with pytest.raises(UserError, match="; the journal was written with x:Y, Ray 2.59.0; restore"):
        SimulatedStudy(config, 12, other)


def test_asha_compares_in_journal_order_not_by_node_clocks():
    study, handles = started(SchedulerConfig(name="asha", reduction_factor=2), [], 2)
    for handle, value, clock in zip(handles, (0.5, 0.4), (9e9, 1.0), strict=True):
        result = {"epoch": 1, "val_top1": value, REPORTED: clock, FIRST_STEP: 0.0, WEIGHTS: 1, "pid": 1}
        study.scheduler.on_trial_result(None, handle, result)
    assert [trial.state for trial in study.record.trials.values()] == ["running", "ended"]


@pytest.mark.parametrize("count", [None, 1, 2])
@settings(max_examples=60, deadline=None)
@given(totals=st.lists(st.integers(1, 80), min_size=2, max_size=4), grace=st.integers(1, 3))
def test_more_trials_do_not_change_existing_hyperband_brackets(count, totals, grace):
    scheduler = HyperBand(SchedulerConfig(name="hyperband", brackets=count, grace_epochs=grace), "val_top1", "max", 27)
    found: dict[LogicalTrial, int] = {}
    for total in totals:
        for number in range(len(found) + 1, total + 1):
            trial = LogicalTrial(number)
            scheduler.on_trial_add(None, trial)
            found[trial] = id(scheduler._trial_info[trial][0])
        assert found == {trial: id(scheduler._trial_info[trial][0]) for trial in found}
    assert len(found) == max(totals)


@pytest.mark.parametrize("totals", [(17, 26), (5, 26), (17, 18)])
def test_a_larger_budget_keeps_the_milestones_of_existing_trials(totals):
    config, events = SchedulerConfig(name="hyperband"), []
    SimulatedStudy(config, totals[0], events).run({}, 4, random.Random(0))
    before, paused = decided(events), ended(events)
    SimulatedStudy(config, totals[1], events).run({}, 4, random.Random(1))
    after = decided(events)
    assert {key: after[key] for key in before} == before
    assert paused < ended(events) == {f"{number:03d}" for number in range(1, totals[1] + 1)}
    SimulatedStudy(config, totals[1], events)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_trials_of_different_lengths_and_failures_do_not_stop_a_study(seed, data):
    """Trials end before their bracket's milestones, fail, or run again after a failure."""
    config = data.draw(st.sampled_from([config for config in CONFIGS if config.name not in ("none", "pbt")]))
    generator, events = random.Random(seed), []
    lengths = {number: generator.choice([1, 3, 6, EPOCHS]) for number in range(1, 21)}
    failing = {(number, generator.randint(1, EPOCHS)): 1 for number in range(1, 21, 4)}
    options = {"epochs": lengths.__getitem__}
    curves = learning_curves(20, EPOCHS, seed)
    SimulatedStudy(config, 20, events, **options).run(curves, 3, generator, failing)
    assert len(ended(events)) == 20
    cut = events[: data.draw(st.integers(1, len(events)))]
    again = SimulatedStudy(config, 20, cut, **options)
    failed = [trial for trial in again.record.trials.values() if trial.error is not None]
    assert again.scheduler.retry_failed() == len(failed)
    again.run(curves, 3, generator)
    assert len(ended(cut)) == 20 and all(trial.state == "ended" and trial.error is None for trial in failed)
    SimulatedStudy(config, 20, cut, **options)


def test_expected_trials_that_do_not_exist_do_not_stop_a_bracket():
    config, events = SchedulerConfig(name="hyperband", brackets=1), []
    study = SimulatedStudy(config, 9, events)
    study.listing.total = 4  # the space has fewer points than expected
    study.scheduler.begin(9)
    study.scheduler.begin = lambda total: None
    study.run({(number, 1): 0.1 * number for number in range(1, 5)}, 4, random.Random(0))
    assert len(ended(events)) == 4
    paused = [event for event in events if event["event"] == "decision" and event["decision"] == "pause"]
    assert len(paused) >= 4
    SimulatedStudy(config, 9, events)


@pytest.mark.parametrize("metric", ["val_top1", "val_loss"])
@pytest.mark.parametrize("config", CONFIGS[1:4], ids=lambda config: config.name)
def test_diverged_trials_end_and_count_as_poor_trials(config, metric):
    sign = 1 if metric == "val_top1" else -1
    last_epochs = {}
    for name, bad in (("poor", -1000.0 * sign), ("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf)):
        values = {}
        for number in range(1, 10):
            for epoch in range(1, EPOCHS + 1):
                values[number, epoch] = bad if number in (4, 5, 7) else sign * number / 10
        events: list[dict] = []
        SimulatedStudy(config, 9, events, metric).run(values, 1 if config.name != "hyperband" else 9, random.Random(0))
        last_epochs[name] = {
            trial: max(
                event["row"]["epoch"] for event in events if event["event"] == "report" and event["trial"] == trial
            )
            for trial in ended(events)
        }
    assert last_epochs["nan"] == last_epochs["inf"] == last_epochs["-inf"]
    good = {f"{number:03d}" for number in (1, 2, 3, 6, 8, 9)}
    assert all(last_epochs["nan"][trial] < EPOCHS for trial in last_epochs["nan"] if trial not in good)
    assert max(last_epochs["nan"], key=lambda trial: (last_epochs["nan"][trial], trial)) == "009"
    if config.name != "asha":  # its cutoff interpolates between two scores, and one is infinite here
        assert last_epochs["nan"] == last_epochs["poor"]


def test_pbt_never_takes_the_weights_of_a_diverged_trial():
    values = {(number, epoch): math.nan for number in range(1, 9) for epoch in range(1, 10)}
    events: list[dict] = []
    SimulatedStudy(CONFIGS[4], 8, events).run(values, 8, random.Random(0))
    assert not exploits(events)
    values |= {(3, epoch): 0.1 for epoch in range(1, 10)}
    SimulatedStudy(CONFIGS[4], 8, events := []).run(values, 8, random.Random(0))
    assert {source for _, source, *_ in exploits(events)} == {"003"}
