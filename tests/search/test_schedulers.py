"""Tests the decisions of each scheduler, schedulers by import path, and how schedulers of Ray Tune are driven."""

import random
import sys

import numpy as np
import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from landmark.config import Recipe, SchedulerConfig, UserError
from landmark.search.schedulers.base import Scheduler
from landmark.search.schedulers.build import build_scheduler
from landmark.search.schedulers.population import PopulationBased
from landmark.search.schedulers.ray_schedulers import bracket_sizes, ray_scheduler
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.state import StudyState, TrialState
from tests.support.simulated_study import SimulatedStudy, decided, ended, learning_curves

MAX = ("val_top1", "max")


class Decisions:
    """A study of running trials; `report` returns the decision."""

    def __init__(self, count: int, config: SchedulerConfig, metric: str = "val_top1", mode: str = "max", **epochs: int):
        self.record = StudyState()
        self.rule = build_scheduler(self.record, config, metric, mode, max_epochs=9, seed=0, exploit=lambda *_: None)
        self.rule.begin(count)
        self.trials = []
        for number in range(1, count + 1):
            name = f"{number:03d}"
            recipe = Recipe(epochs=epochs.get(f"trial{number}", 9))
            plan = TrialSpec(number=number, name=name, point={}, parameters={}, recipe=recipe, dataset=None)
            trial = self.record.propose(plan)
            self.rule.on_propose(trial)
            trial.state = "running"
            self.trials.append(trial)

    def report(self, trial: TrialState, epoch: int, value: float) -> str | None:
        report(trial, epoch, value)
        (self.rule.on_end if epoch >= trial.plan.recipe.epochs else self.rule.on_result)(trial)
        return trial.decisions.get(epoch)

    def continue_all(self) -> list[str]:
        """Return the names of the paused trials that the scheduler continues."""
        paused = [trial for trial in self.trials if trial.state == "paused"]
        for _ in paused:
            self.rule.continue_paused()
        continued = [trial for trial in paused if trial.state == "waiting"]
        for trial in continued:
            trial.state = "running"
        return [trial.plan.name for trial in continued]


def report(trial: TrialState, epoch: int, value: float) -> TrialState:
    trial.rows[epoch] = {"val_top1": value, "val_loss": -value}
    return trial


@pytest.mark.parametrize(("metric", "mode"), [("val_top1", "max"), ("val_loss", "min")])
def test_asha_stops_trials_below_the_best_third_of_earlier_trials(metric, mode):
    study = Decisions(4, SchedulerConfig(name="asha"), metric, mode)
    first, second, third, fourth = study.trials
    assert study.report(first, 1, 0.5) == "continue"  # no earlier trial
    assert study.report(second, 1, 0.4) == "stop"
    assert study.report(third, 1, 0.6) == "continue"
    assert study.report(fourth, 1, 0.52) == "stop"  # the best third begins at 0.5 + 2/3 · …
    assert study.report(third, 2, 0.0) == "continue"  # no rung
    assert study.report(first, 2, 0.0) == "continue"
    assert [trial.state for trial in study.trials] == ["running", "ended", "running", "ended"]


def test_median_stopping_compares_the_best_value_with_mean_values():
    study = Decisions(4, SchedulerConfig(name="median_stopping", grace_epochs=2, min_trials=2))
    good, fair, poor, late = study.trials
    for epoch in (1, 2, 3):
        study.report(good, epoch, 0.6)
        study.report(fair, epoch, 0.4)
    assert study.report(poor, 1, 0.1) == "continue"  # in its grace period
    assert study.report(poor, 2, 0.2) == "stop"
    study.report(late, 1, 0.7)
    assert study.report(late, 2, 0.1) == "continue"  # its best is above the median


def test_brackets_start_with_the_shortest_and_repeat():
    assert bracket_sizes(SchedulerConfig(name="hyperband"), 9, 30) == [
        (9, [(1, 3), (3, 1)]),
        (5, [(3, 2)]),
        (3, []),
        (9, [(1, 3), (3, 1)]),
        (4, [(3, 2)]),
    ]
    halving = [(9, [(1, 3), (3, 1)])] * 2
    assert bracket_sizes(SchedulerConfig(name="hyperband", brackets=1), 9, 18) == halving
    assert bracket_sizes(SchedulerConfig(name="hyperband", grace_epochs=2), 9, 3) == [(3, [(3, 1)])]
    assert bracket_sizes(SchedulerConfig(name="hyperband"), 27, 49) == [
        (27, [(1, 9), (3, 3), (9, 1)]),
        (12, [(3, 4), (9, 2)]),
        (6, [(9, 2)]),
        (4, []),
    ]
    assert bracket_sizes(SchedulerConfig(name="hyperband"), 12, 14) == [(9, [(1, 3), (3, 1)]), (5, [(4, 2)])]


def test_hyperband_promotes_trials_only_after_all_have_reported():
    study = Decisions(9, SchedulerConfig(name="hyperband"))
    for index, trial in enumerate(study.trials[:-1]):
        assert study.report(trial, 1, 0.1 * index) == "pause"
        assert study.continue_all() == []
    assert study.report(study.trials[-1], 1, 0.05) == "stop"
    assert [trial.state for trial in study.trials] == ["ended"] * 5 + ["paused"] * 3 + ["ended"]
    assert study.continue_all() == ["006", "007", "008"]
    best, *others = study.trials[5:8]
    for value, trial in zip((0.3, 0.2, 0.1), (best, *others), strict=True):
        assert study.report(trial, 2, 0.5) == "continue"
        assert study.report(trial, 3, value) == ("pause" if value > 0.1 else "stop")
    assert [trial.state for trial in study.trials[5:8]] == ["paused", "ended", "ended"]
    assert study.continue_all() == ["006"]
    for epoch in range(4, 9):
        assert study.report(best, epoch, 0.0) == "continue"


def test_hyperband_keeps_the_longer_of_equal_trials():
    for short, order in ((1, (1, 2)), (1, (2, 1)), (2, (1, 2)), (2, (2, 1))):
        study = Decisions(9, SchedulerConfig(name="hyperband", brackets=1), **{f"trial{short}": 3})
        for trial in study.trials[2:]:
            study.report(trial, 1, 0.9 if trial.plan.number < 5 else 0.1)
        for number in order:
            study.report(study.trials[number - 1], 1, 0.4)
        study.continue_all()
        # Two of 0.9 continue, and the third place is a tie of the trials 1 and 2.
        assert [trial.state for trial in study.trials[:2]] == (
            ["ended", "running"] if short == 1 else ["running", "ended"]
        )


@pytest.mark.parametrize("epoch", [1, 2])
def test_hyperband_does_not_wait_for_trials_that_failed(epoch):
    """Ray Tune's HyperBandScheduler waits for ever for a trial that fails after the first halving."""
    study = Decisions(9, SchedulerConfig(name="hyperband"))
    if epoch == 1:
        study.record.fail(study.trials[8], "no memory")
        study.rule.on_end(study.trials[8])
    for index, trial in enumerate(study.trials[:8]):
        study.report(trial, 1, 0.1 * index)
    if epoch == 2:
        study.report(study.trials[8], 1, 0.8)
    alive = study.continue_all()
    running = [trial for trial in study.trials if trial.state == "running"]
    assert len(running) == 3 and len(alive) == 2
    if epoch == 2:
        failing, *others = running
        for trial in others:
            study.report(trial, 2, 0.5)
            assert study.report(trial, 3, 0.5) == "pause"
        study.record.fail(failing, "no memory")
        study.rule.on_end(failing)
        assert len(study.continue_all()) == 1


def test_pbt_exploits_the_best_trial_at_the_same_epoch():
    found, exploits = StudyState(), []

    def exploit(trial, source, rng: random.Random) -> None:
        exploits.append((trial.plan.name, source.plan.name))

    for number in range(1, 5):
        recipe, name = Recipe(epochs=9), f"{number:03d}"
        plan = TrialSpec(number=number, name=name, point={}, parameters={}, recipe=recipe, dataset=None)
        found.propose(plan).state = "running"
    config = SchedulerConfig(name="pbt", interval_epochs=2, quantile=0.25)
    rule = PopulationBased(found, config, *MAX, exploit=exploit, seed=0)
    one, two, three, four = found.trials.values()

    def decision(trial: TrialState) -> str:
        trial.state = "running" if trial.state != "ended" else "ended"
        rule.on_result(trial)
        return trial.decisions[trial.epochs_run]

    for trial, value in ((one, 0.5), (two, 0.4), (three, 0.9)):
        report(trial, 1, value)
        report(trial, 2, value)
    assert decision(report(four, 1, 0.0)) == "continue"  # not the end of an interval
    assert decision(report(four, 2, 0.1)) == "restart"
    assert exploits == [("004", "003")] and four.state == "waiting"
    four.state = "running"
    assert decision(three) == "continue"
    found.end(three)  # an ended trial is not exploited: its weights have no epochs left
    assert decision(two) == "continue"
    one.state = "waiting"
    one.rows.pop(2)
    assert decision(report(two, 4, 0.4)) == "restart"  # it frees resources for the trial that is behind


def build(max_epochs: int = 3, **config) -> Scheduler:
    return build_scheduler(
        StudyState(), SchedulerConfig(**config), *MAX, max_epochs=max_epochs, seed=0, exploit=lambda *_: None
    )


def test_a_grace_period_beyond_the_longest_trial_is_an_error():
    assert type(build(name="none")) is Scheduler
    assert build(name="asha").identity.startswith("ray.tune.schedulers.async_hyperband:AsyncHyperBandScheduler, Ray ")
    with pytest.raises(UserError, match="scheduler.grace_epochs is 4, but the longest trial has 3 epochs"):
        build(name="asha", grace_epochs=4)
    with pytest.raises(UserError, match="scheduler.interval_epochs is 4"):
        build(name="pbt", interval_epochs=4)


ASHA = "ray.tune.schedulers:AsyncHyperBandScheduler"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_module:Class", {}, "the module no_such_module cannot be imported .*; install it, or add its folder"),
        ("ray.tune.schedulers:AsyncHyperband", {}, "the module has no AsyncHyperband; did you mean 'AsyncHyperBandSch"),
        ("ray.tune.search:Searcher", {}, "expected a subclass of ray.tune.schedulers.trial_scheduler.TrialScheduler"),
        ("ray.tune.schedulers:PopulationBasedTraining", {}, "Ray Tune's own checkpoints; .* is scheduler pbt"),
        ("ray.tune.schedulers.pb2:PB2", {}, "Ray Tune's own checkpoints|cannot be imported"),
        (
            ASHA,
            {"grace_periode": 2},
            "scheduler.options.grace_periode: AsyncHyperBandScheduler has no such argument; did you mean 'gra",
        ),
        (
            ASHA,
            {"mode": "min"},
            "scheduler.options.mode is set, but landmark sets it from the space's metric; remove it",
        ),
        (ASHA, {"grace_period": 20}, "scheduler.options: AsyncHyperBandScheduler does not accept .* grace_period must"),
    ],
)
def test_a_wrong_class_or_option_is_a_one_line_error(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        build(name=name, options=options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "my.module.Class"}, "scheduler.name is 'my.module.Class'; .*a class of Ray Tune is MODULE:CLASS"),
        ({"name": "asha", "options": {"max_t": 3}}, "scheduler.options is set, but scheduler.name is asha; remove it"),
        ({"name": ASHA, "grace_epochs": 2}, f"scheduler.grace_epochs is set, but scheduler.name is {ASHA}; remove it"),
    ],
)
def test_options_that_do_not_apply_are_errors(config, message):
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(**config)


def test_a_scheduler_is_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_rules.py").write_text(
        "from ray.tune.schedulers import FIFOScheduler\n"
        "class Half(FIFOScheduler):\n"
        "    def __init__(self, below):\n"
        "        super().__init__()\n"
        "        self.below = below\n"
        "    def on_trial_result(self, controller, trial, result):\n"
        "        return 'STOP' if result[self.metric] < self.below else 'CONTINUE'\n"
    )
    monkeypatch.chdir(tmp_path)
    config = SchedulerConfig(name="my_own_rules:Half", options={"below": 0.5})
    study = Decisions(2, config)
    assert [study.report(trial, 1, value) for trial, value in zip(study.trials, (0.4, 0.6), strict=True)] == [
        "stop",
        "continue",
    ]
    assert str(tmp_path) not in sys.path
    with pytest.raises(UserError, match="scheduler.options: Half does not accept .*below"):
        ray_scheduler(SchedulerConfig(name="my_own_rules:Half"), *MAX, 3)


class Recording(FIFOScheduler):
    """Remembers the results that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def on_trial_result(self, tune_controller, trial, result) -> str:
        self.seen.append((trial.trial_id, result["training_iteration"]))
        return TrialScheduler.CONTINUE


class Random(Recording):
    """Decides at random, with both global generators."""

    def on_trial_result(self, tune_controller, trial, result) -> str:
        super().on_trial_result(tune_controller, trial, result)
        if random.random() < 0.1:
            return TrialScheduler.STOP
        return TrialScheduler.PAUSE if np.random.random() < 0.3 else TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller):
        paused = [trial for trial in tune_controller.get_trials() if trial.status == "PAUSED"]
        return random.choice(paused) if paused and np.random.random() < 0.8 else None


RANDOM = SchedulerConfig(name=f"{__name__}:Random")


def test_random_decisions_are_repeated_at_a_restore_and_leave_the_generators_alone():
    events: list[dict] = []
    random.seed(5)
    np.random.seed(5)
    expected = random.Random(5).random(), np.random.RandomState(5).random_sample()
    SimulatedStudy(RANDOM, 20, events).run(learning_curves(20, 9, 0), 4, random.Random(0))
    assert (random.random(), np.random.random()) == expected
    kinds = {decision for decisions in decided(events).values() for decision in decisions}
    assert kinds == {"continue", "stop", "pause"} and len(ended(events)) == 20
    first = SimulatedStudy(RANDOM, 20, list(events)).rule.scheduler.seen
    assert (
        len(first)
        == len(set(first))
        == sum(event["event"] == "report" and event["row"]["epoch"] < 9 for event in events)
    )


def test_a_repeated_epoch_is_not_forwarded():
    study = Decisions(1, SchedulerConfig(name=f"{__name__}:Recording"))
    (trial,) = study.trials
    for epoch in (1, 2, 3):
        report(trial, epoch, 0.5)
        if epoch != 2:  # reported again, after its checkpoint was lost
            study.rule.on_result(trial)
    trial.rows.pop(3)
    study.rule.on_result(trial)
    assert study.rule.scheduler.seen == [("00001", 1), ("00001", 3)]


def test_a_scheduler_that_never_chooses_a_paused_trial_does_not_stop_the_study():
    """Ray Tune raises an error in this case. Its HyperBandScheduler gets there when a trial fails late."""
    config = SchedulerConfig(name="ray.tune.schedulers:HyperBandScheduler", options={"reduction_factor": 3})
    for seed in range(20):
        events: list[dict] = []
        curves, order = learning_curves(17, 9, seed), random.Random(seed)
        failing = {(number, order.randint(1, 9)): 1 for number in range(1, 18, 3)}
        SimulatedStudy(config, 17, events).run(curves, 4, order, failing)
        assert len(ended(events)) == 17
        SimulatedStudy(config, 17, events)


def test_a_scheduler_that_needs_ray_tunes_processes_is_a_one_line_error(tmp_path, monkeypatch):
    (tmp_path / "needs_processes.py").write_text(
        "from ray.tune.schedulers import FIFOScheduler\n"
        "class Saves(FIFOScheduler):\n"
        "    def on_trial_result(self, controller, trial, result):\n"
        "        controller._schedule_trial_save(trial)\n"
    )
    monkeypatch.chdir(tmp_path)
    study = Decisions(1, SchedulerConfig(name="needs_processes:Saves"))
    message = (
        "scheduler needs_processes:Saves, on_trial_result of 001 at epoch 1: .*no tune_controller._schedule_trial_save"
    )
    with pytest.raises(UserError, match=message):
        study.report(study.trials[0], 1, 0.5)
