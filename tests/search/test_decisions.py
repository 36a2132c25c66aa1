"""Tests that scheduler decisions about complete studies survive the loss of a driver; Ray's calls are simulated."""

import json
import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from landmark.config import Recipe, SchedulerConfig
from landmark.search.schedulers import StudyScheduler, brackets, build_rule
from landmark.search.searcher import StudySearcher
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.journal import WHERE
from landmark.search.state.state import FIRST_STEP, REPORTED, TAKEN, WEIGHTS, Exploit, StudyState

CONFIGS = [
    SchedulerConfig(name="none"),
    SchedulerConfig(name="asha", reduction_factor=2),
    SchedulerConfig(name="hyperband"),
    SchedulerConfig(name="median_stopping", min_trials=2),
    SchedulerConfig(name="pbt", interval_epochs=2, quantile=0.5),
]
EPOCHS = 9


class Events:
    """A journal in memory. Each event is converted to JSON and back, as in a journal that is read again."""

    def __init__(self, events: list[dict]) -> None:
        self.events = events

    def add(self, event: str, **values) -> None:
        self.events.append(json.loads(json.dumps({"event": event, "at": float(len(self.events)), **values})))

    def flush(self, *, due: bool = False, final: bool = False) -> None:
        pass


def plan_of(number: int, point: dict) -> TrialSpec:
    recipe = Recipe(epochs=EPOCHS)
    return TrialSpec(number=number, name=f"{number:03d}", point=point, parameters={}, recipe=recipe, dataset=None)


class Listing:
    """A sampler that lists trials in order."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.proposed = 0

    def next(self) -> TrialSpec | None:
        self.proposed += 1
        return plan_of(self.proposed, {}) if self.proposed <= self.total else None

    def restore(self, plan: TrialSpec) -> None:
        self.proposed = max(self.proposed, plan.number)

    def tell(self, plan, metrics) -> None:
        pass


class Process:
    """One driver process of a study, restored from the events of the processes before it."""

    def __init__(self, config: SchedulerConfig, total: int, events: list[dict], metric: str = "val_top1") -> None:
        self.events, self.config, self.metric = events, config, metric
        self.record = StudyState()
        self.record.restore(({**event, WHERE: str(n)} for n, event in enumerate(events)), plan_of)
        self.record.journal = Events(events)
        rule = build_rule(
            self.record,
            config,
            metric,
            "min" if metric == "val_loss" else "max",
            max_epochs=EPOCHS,
            totals=[*self.record.totals, total],
            seed=0,
            exploit=self._exploit,
        )
        self.scheduler = StudyScheduler(self.record, rule)
        self.listing = Listing(total)
        for trial in self.record.trials.values():
            self.listing.restore(trial.plan)
        self.scheduler.restore_trials()

    def _exploit(self, trial, source, rng: random.Random) -> None:
        point = {"draw": rng.random()}
        exploit = Exploit(
            trial=trial.plan.name, source=source.plan.name, epoch=trial.epochs_run, point=point, changed={}, explored={}
        )
        self.record.plan_exploit(exploit, plan_of(trial.plan.number, point))

    def run(self, values: dict[tuple[int, int], float], slots: int, order: random.Random) -> None:
        """Run the study to its end. values: the metric by trial and epoch; order: selects the next trial to report."""
        self.record.begin(self.listing.total)
        queue = StudySearcher(self.scheduler.rule, self.listing, lambda trial: {"name": trial.plan.name}, slots)
        if self.config.name == "pbt":
            queue.propose_all()
        running: list[SimpleNamespace] = []
        while True:
            suggestion = queue.suggest("") if len(running) < slots else None
            if isinstance(suggestion, dict):
                running.append(SimpleNamespace(config=suggestion))
                self.record.of(running[-1]).state = "running"
            elif suggestion == Searcher.FINISHED and not running:
                return
            elif not running:
                raise AssertionError("deadlock: every trial waits for others, and none runs")
            else:
                self._report(running, order.choice(running), values, order)

    def _report(self, running: list, handle: SimpleNamespace, values: dict, order: random.Random) -> None:
        trial = self.record.of(handle)
        if trial.epochs_run == EPOCHS:  # the process was lost after the last report, before the trial ended
            running.remove(handle)
            self.scheduler.on_trial_complete(None, handle, {})
            return
        result = {WEIGHTS: 1, FIRST_STEP: 0.0, "pid": 1, "epoch_seconds": 1.0}
        if trial.planned is not None:
            result[TAKEN] = trial.planned.exploit.epoch
        result["epoch"] = trial.epochs_run + 1
        result[self.metric] = values.get((trial.plan.number, result["epoch"]), 0.5)
        # The clocks of nodes differ, and some have stopped.
        result[REPORTED] = order.choice([0.0, float(len(self.events)), order.uniform(-1e9, 1e9)])
        if self.scheduler.on_trial_result(None, handle, result) == TrialScheduler.STOP:
            running.remove(handle)
        elif result["epoch"] == EPOCHS:
            running.remove(handle)
            self.scheduler.on_trial_complete(None, handle, result)


def decided(events: list[dict]) -> dict[tuple[str, int], list[str]]:
    """Return the decisions per trial and epoch, in order.

    "restart" counts as "continue": such a trial of a population continues at once after a restart of the study.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for event in events:
        if event["event"] == "decision":
            decision = "continue" if event["decision"] == "restart" else event["decision"]
            found.setdefault((event["trial"], event["epoch"]), []).append(decision)
    return found


def exploits(events: list[dict]) -> list[tuple]:
    return [(e["trial"], e["source"], e["epoch"], e["point"]) for e in events if e["event"] == "exploit planned"]


def ended(events: list[dict]) -> set[str]:
    return {event["trial"] for event in events if event["event"] == "ended"}


FINITE = st.floats(0, 1)
METRICS = st.lists(st.one_of(FINITE, st.sampled_from([math.nan, math.inf, -math.inf])), min_size=72, max_size=72)


def by_epoch(metrics: list[float]) -> dict[tuple[int, int], float]:
    return {(1 + index // EPOCHS, 1 + index % EPOCHS): value for index, value in enumerate(metrics)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@settings(max_examples=15, deadline=None)
@given(metrics=METRICS, seed=st.integers(0, 10**6), data=st.data())
def test_decisions_are_the_same_after_a_restart_at_any_event(config, metrics, seed, data):
    events: list[dict] = []
    Process(config, 8, events).run(by_epoch(metrics), 3, random.Random(seed))
    complete = decided(events)
    assert ended(events) == {f"{number:03d}" for number in range(1, 9)}
    for length in data.draw(st.lists(st.integers(1, len(events)), min_size=12, max_size=12)):
        prefix = events[:length]
        restored = Process(config, 8, prefix)
        for key, decisions in decided(prefix).items():
            assert decisions == complete[key][: len(decisions)]
        assert exploits(prefix) == exploits(events)[: len(exploits(prefix))]
        assert {trial.plan.name for trial in restored.record.trials.values() if trial.state == "ended"} == ended(prefix)
    restored.run(by_epoch(metrics), 3, random.Random(seed + 1))
    for key, decisions in decided(events[:length]).items():
        assert decided(prefix)[key][: len(decisions)] == decisions


def test_a_restart_keeps_earlier_decisions_of_the_median_rule():
    config, events = SchedulerConfig(name="median_stopping", min_trials=2), []
    process = Process(config, 3, events)
    process.record.begin(3)
    trials = [process.record.propose(plan_of(number, {})) for number in (1, 2, 3)]
    handles = [SimpleNamespace(config={"trial": {"name": trial.plan.name}}) for trial in trials]
    for values in ((0.5, 0.4, 0.45), (0.9, 0.8)):  # the third trial has run one epoch when the process is lost
        for trial, handle, value in zip(trials, handles, values, strict=False):
            trial.state = "running"
            process._report([handle], handle, {(trial.plan.number, trial.epochs_run + 1): value}, random.Random(0))
    assert decided(events)["003", 1] == ["continue"]
    # Evaluated now, its 0.45 would be compared with later results of the other trials.
    trials[0].rows[1]["val_top1"] = trials[1].rows[1]["val_top1"] = 0.9
    assert process.scheduler.rule.on_result(trials[2]) == "stop"
    changed = json.loads(json.dumps(events))
    for event in changed:
        if event["event"] == "report" and event["trial"] != "003":
            event["row"]["val_top1"] = 0.9
    assert Process(config, 3, changed).record.trials["003"].state == "waiting"


def test_a_journal_without_decisions_is_decided_when_restored():
    config, events = SchedulerConfig(name="asha", reduction_factor=2), []
    process = Process(config, 2, events)
    process.record.begin(2)
    trials = [process.record.propose(plan_of(number, {})) for number in (1, 2)]
    for trial, value in zip(trials, (0.5, 0.4), strict=True):
        result = {"epoch": 1, "val_top1": value, REPORTED: 1.0, FIRST_STEP: 0.0, WEIGHTS: 1, "pid": 1}
        process.record.add(trial, result)
    for event in events:
        event.pop("trials", None)
    old = Process(config, 2, list(events))
    assert old.record.totals == [] and [trial.state for trial in old.record.trials.values()] == ["waiting", "ended"]
    population = Process(SchedulerConfig(name="pbt", interval_epochs=1, quantile=0.5), 2, list(events))
    assert not exploits(population.events)  # the next interval decides


def test_asha_compares_in_journal_order_not_by_node_clocks():
    config, events = SchedulerConfig(name="asha", reduction_factor=2), []
    process = Process(config, 2, events)
    process.record.begin(2)
    early, late = (process.record.propose(plan_of(number, {})) for number in (1, 2))
    for trial, value, clock in ((early, 0.5, 9e9), (late, 0.4, 1.0)):
        trial.state = "running"
        handle = SimpleNamespace(config={"trial": {"name": trial.plan.name}})
        result = {"epoch": 1, "val_top1": value, REPORTED: clock, FIRST_STEP: 0.0, WEIGHTS: 1, "pid": 1}
        process.scheduler.on_trial_result(None, handle, result)
    assert (early.state, late.state) == ("running", "ended")


@pytest.mark.parametrize("count", [None, 1, 2])
@settings(max_examples=60, deadline=None)
@given(totals=st.lists(st.integers(1, 80), min_size=2, max_size=4), grace=st.integers(1, 3))
def test_more_trials_do_not_change_existing_hyperband_brackets(count, totals, grace):
    config = SchedulerConfig(name="hyperband", brackets=count, grace_epochs=grace)

    def positions(created) -> dict[int, tuple]:
        return {number: (index, tuple(b.milestones)) for index, b in enumerate(created) for number in b.numbers}

    before = positions(brackets(config, 27, totals[:-1], 0))
    after = positions(brackets(config, 27, totals, 0))
    assert sorted(after) == list(range(1, max(totals) + 1))
    assert {number: after[number] for number in before} == before


def test_a_larger_budget_keeps_the_milestones_of_existing_trials():
    config, events = SchedulerConfig(name="hyperband"), []
    Process(config, 17, events).run({}, 4, random.Random(0))
    before, paused = decided(events), ended(events)
    Process(config, 26, events).run({}, 4, random.Random(1))
    after = decided(events)
    assert {key: after[key] for key in before} == before
    assert paused < ended(events) == {f"{number:03d}" for number in range(1, 27)}


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
        Process(config, 9, events, metric).run(values, 1 if config.name != "hyperband" else 9, random.Random(0))
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
    Process(CONFIGS[4], 8, events).run(values, 8, random.Random(0))
    assert not exploits(events)
    values |= {(3, epoch): 0.1 for epoch in range(1, 10)}
    Process(CONFIGS[4], 8, events := []).run(values, 8, random.Random(0))
    assert {source for _, source, *_ in exploits(events)} == {"003"}
