"""Schedulers over whole studies: no Ray, but its calls in its order. What was decided stays, whenever a process is lost."""

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
from landmark.search.searcher import TrialQueue
from landmark.search.spaces.space import TrialPlan
from landmark.search.state.journal import WHERE
from landmark.search.state.state import FIRST_STEP, REPORTED, TAKEN, WEIGHTS, Exploit, StudyRecord

CONFIGS = [
    SchedulerConfig(name="none"),
    SchedulerConfig(name="asha", reduction_factor=2),
    SchedulerConfig(name="hyperband"),
    SchedulerConfig(name="median_stopping", min_trials=2),
    SchedulerConfig(name="pbt", interval_epochs=2, quantile=0.5),
]
EPOCHS = 9


class Events:
    """A journal in memory: what a process reads back after each of its lines went through JSON."""

    def __init__(self, events: list[dict]) -> None:
        self.events = events

    def add(self, event: str, **values) -> None:
        self.events.append(json.loads(json.dumps({"event": event, "at": float(len(self.events)), **values})))

    def flush(self, *, due: bool = False, final: bool = False) -> None:
        pass


def plan_of(number: int, point: dict) -> TrialPlan:
    recipe = Recipe(epochs=EPOCHS)
    return TrialPlan(number=number, name=f"{number:03d}", point=point, parameters={}, recipe=recipe, dataset=None)


class Listing:
    """Trials in their order."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.given = 0

    def next(self) -> TrialPlan | None:
        self.given += 1
        return plan_of(self.given, {}) if self.given <= self.total else None

    def adopt(self, plan: TrialPlan) -> None:
        self.given = max(self.given, plan.number)

    def told(self, plan, metrics) -> None:
        pass


class Process:
    """One driver process of a study, from the events of those before it."""

    def __init__(self, config: SchedulerConfig, total: int, events: list[dict], metric: str = "val_top1") -> None:
        self.events, self.config, self.metric = events, config, metric
        self.record = StudyRecord()
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
            take_over=self._take_over,
        )
        self.scheduler = StudyScheduler(self.record, rule)
        self.listing = Listing(total)
        for trial in self.record.trials.values():
            self.listing.adopt(trial.plan)
        self.scheduler.take_up()

    def _take_over(self, trial, source, draws: random.Random) -> None:
        point = {"draw": draws.random()}
        exploit = Exploit(
            trial=trial.plan.name, source=source.plan.name, epoch=trial.epochs_run, point=point, changed={}, explored={}
        )
        self.record.plan_exploit(exploit, plan_of(trial.plan.number, point))

    def run(self, values: dict[tuple[int, int], float], slots: int, order: random.Random) -> None:
        """Run the study to its end. values: the metric by trial and epoch; order: which process reports next."""
        self.record.begin(self.listing.total)
        queue = TrialQueue(self.scheduler.rule, self.listing, lambda trial: {"name": trial.plan.name}, slots)
        if self.config.name == "pbt":
            queue.propose_all()
        running: list[SimpleNamespace] = []
        while True:
            given = queue.suggest("") if len(running) < slots else None
            if isinstance(given, dict):
                running.append(SimpleNamespace(config=given))
                self.record.of(running[-1]).state = "running"
            elif given == Searcher.FINISHED and not running:
                return
            elif not running:
                raise AssertionError("every trial waits for others, and none runs")
            else:
                self._report(running, order.choice(running), values, order)

    def _report(self, running: list, handle: SimpleNamespace, values: dict, order: random.Random) -> None:
        trial = self.record.of(handle)
        if trial.epochs_run == EPOCHS:  # the process before was lost between its last report and its end
            running.remove(handle)
            self.scheduler.on_trial_complete(None, handle, {})
            return
        result = {WEIGHTS: 1, FIRST_STEP: 0.0, "pid": 1, "epoch_seconds": 1.0}
        if trial.planned is not None:
            result[TAKEN] = trial.planned.exploit.epoch
        result["epoch"] = trial.epochs_run + 1
        result[self.metric] = values.get((trial.plan.number, result["epoch"]), 0.5)
        # Clocks of nodes differ, and some stand still.
        result[REPORTED] = order.choice([0.0, float(len(self.events)), order.uniform(-1e9, 1e9)])
        if self.scheduler.on_trial_result(None, handle, result) == TrialScheduler.STOP:
            running.remove(handle)
        elif result["epoch"] == EPOCHS:
            running.remove(handle)
            self.scheduler.on_trial_complete(None, handle, result)


def decided(events: list[dict]) -> dict[tuple[str, int], list[str]]:
    """Return the decisions about each trial at each epoch, in their order.

    A population's trial that makes way for others ("restart") continues at once after a restart of the study.
    """
    found: dict[tuple[str, int], list[str]] = {}
    for event in events:
        if event["event"] == "decision":
            verdict = "go on" if event["verdict"] == "restart" else event["verdict"]
            found.setdefault((event["trial"], event["epoch"]), []).append(verdict)
    return found


def exploits(events: list[dict]) -> list[tuple]:
    return [(e["trial"], e["source"], e["epoch"], e["point"]) for e in events if e["event"] == "exploit planned"]


def ended(events: list[dict]) -> set[str]:
    return {event["trial"] for event in events if event["event"] == "ended"}


FINITE = st.floats(0, 1)
METRICS = st.lists(st.one_of(FINITE, st.sampled_from([math.nan, math.inf, -math.inf])), min_size=72, max_size=72)


def by_epoch(metrics: list[float]) -> dict[tuple[int, int], float]:
    return {(1 + place // EPOCHS, 1 + place % EPOCHS): value for place, value in enumerate(metrics)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@settings(max_examples=15, deadline=None)
@given(metrics=METRICS, seed=st.integers(0, 10**6), data=st.data())
def test_after_any_part_of_the_journal_the_decisions_are_the_same(config, metrics, seed, data):
    events: list[dict] = []
    Process(config, 8, events).run(by_epoch(metrics), 3, random.Random(seed))
    whole = decided(events)
    assert ended(events) == {f"{number:03d}" for number in range(1, 9)}
    for length in data.draw(st.lists(st.integers(1, len(events)), min_size=12, max_size=12)):
        part = events[:length]
        again = Process(config, 8, part)
        for key, verdicts in decided(part).items():
            assert verdicts == whole[key][: len(verdicts)]
        assert exploits(part) == exploits(events)[: len(exploits(part))]
        assert {trial.plan.name for trial in again.record.trials.values() if trial.state == "ended"} == ended(part)
    again.run(by_epoch(metrics), 3, random.Random(seed + 1))
    for key, verdicts in decided(events[:length]).items():
        assert decided(part)[key][: len(verdicts)] == verdicts


def test_a_restart_keeps_what_the_median_rule_decided_though_it_knows_more_now():
    config, events = SchedulerConfig(name="median_stopping", min_trials=2), []
    process = Process(config, 3, events)
    process.record.begin(3)
    trials = [process.record.propose(plan_of(number, {})) for number in (1, 2, 3)]
    handles = [SimpleNamespace(config={"trial": {"name": trial.plan.name}}) for trial in trials]
    for values in ((0.5, 0.4, 0.45), (0.9, 0.8)):  # the third one has come to one epoch when the process is lost
        for trial, handle, value in zip(trials, handles, values, strict=False):
            trial.state = "running"
            process._report([handle], handle, {(trial.plan.number, trial.epochs_run + 1): value}, random.Random(0))
    assert decided(events)["003", 1] == ["go on"]
    # Judged now, its 0.45 would be compared with what the others have reached since.
    trials[0].rows[1]["val_top1"] = trials[1].rows[1]["val_top1"] = 0.9
    assert process.scheduler.rule.judge(trials[2]) == "stop"
    changed = json.loads(json.dumps(events))
    for event in changed:
        if event["event"] == "report" and event["trial"] != "003":
            event["row"]["val_top1"] = 0.9
    assert Process(config, 3, changed).record.trials["003"].state == "waiting"


def test_a_journal_without_decisions_is_judged_as_before():
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
    assert not exploits(population.events)  # its next interval decides


def test_asha_compares_in_the_order_of_the_journal_whatever_the_clocks_of_the_nodes():
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


@pytest.mark.parametrize("kinds", [None, 1, 2])
@settings(max_examples=60, deadline=None)
@given(totals=st.lists(st.integers(1, 80), min_size=2, max_size=4), grace=st.integers(1, 3))
def test_more_trials_leave_every_hyperband_bracket_as_it_was(kinds, totals, grace):
    config = SchedulerConfig(name="hyperband", brackets=kinds, grace_epochs=grace)

    def places(made) -> dict[int, tuple]:
        return {number: (place, tuple(b.milestones)) for place, b in enumerate(made) for number in b.numbers}

    before = places(brackets(config, 27, totals[:-1], 0))
    after = places(brackets(config, 27, totals, 0))
    assert sorted(after) == list(range(1, max(totals) + 1))
    assert {number: after[number] for number in before} == before


def test_a_study_with_a_greater_budget_keeps_the_milestones_of_its_trials():
    config, events = SchedulerConfig(name="hyperband"), []
    Process(config, 17, events).run({}, 4, random.Random(0))
    before, paused = decided(events), ended(events)
    Process(config, 26, events).run({}, 4, random.Random(1))
    after = decided(events)
    assert {key: after[key] for key in before} == before
    assert paused < ended(events) == {f"{number:03d}" for number in range(1, 27)}


@pytest.mark.parametrize("metric", ["val_top1", "val_loss"])
@pytest.mark.parametrize("config", CONFIGS[1:4], ids=lambda config: config.name)
def test_trials_that_diverge_end_and_the_others_are_judged_as_if_they_were_poor(config, metric):
    sign = 1 if metric == "val_top1" else -1
    ends = {}
    for name, bad in (("poor", -1000.0 * sign), ("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf)):
        values = {}
        for number in range(1, 10):
            for epoch in range(1, EPOCHS + 1):
                values[number, epoch] = bad if number in (4, 5, 7) else sign * number / 10
        events: list[dict] = []
        Process(config, 9, events, metric).run(values, 1 if config.name != "hyperband" else 9, random.Random(0))
        ends[name] = {
            trial: max(
                event["row"]["epoch"] for event in events if event["event"] == "report" and event["trial"] == trial
            )
            for trial in ended(events)
        }
    assert ends["nan"] == ends["inf"] == ends["-inf"]
    good = {f"{number:03d}" for number in (1, 2, 3, 6, 8, 9)}
    assert all(ends["nan"][trial] < EPOCHS for trial in ends["nan"] if trial not in good)
    assert max(ends["nan"], key=lambda trial: (ends["nan"][trial], trial)) == "009"
    if config.name != "asha":  # its cutoff lies between two scores, one of which has no distance to the other here
        assert ends["nan"] == ends["poor"]


def test_a_population_never_takes_the_weights_of_a_trial_that_diverged():
    values = {(number, epoch): math.nan for number in range(1, 9) for epoch in range(1, 10)}
    events: list[dict] = []
    Process(CONFIGS[4], 8, events).run(values, 8, random.Random(0))
    assert not exploits(events)
    values |= {(3, epoch): 0.1 for epoch in range(1, 10)}
    Process(CONFIGS[4], 8, events := []).run(values, 8, random.Random(0))
    assert {source for _, source, *_ in exploits(events)} == {"003"}
