"""Run a study without Ray's processes: the record, the scheduler, the queue and the journal are real, trials are numbers."""

import json
import math
import random
from collections.abc import Callable, Mapping
from types import SimpleNamespace

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from landmark.config import Recipe, SchedulerConfig
from landmark.search.import_path import preserved_generators
from landmark.search.schedulers.base import Scheduler
from landmark.search.schedulers.build import build_scheduler
from landmark.search.schedulers.study_scheduler import StudyScheduler
from landmark.search.searcher import Proposals, StudySearcher
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.journal import WHERE
from landmark.search.state.state import FIRST_STEP, REPORTED, TAKEN, WEIGHTS, Exploit, StudyState, TrialState

EPOCHS = 9


class Events:
    """A journal in memory. Each event is converted to JSON and back, as in a journal that is read again."""

    def __init__(self, events: list[dict]) -> None:
        self.events = events

    def add(self, event: str, **values: object) -> None:
        self.events.append(json.loads(json.dumps({"event": event, "at": float(len(self.events)), **values})))

    def flush(self, *, due: bool = False, final: bool = False) -> None:
        pass


class Listing:
    """A sampler that lists trials in order."""

    def __init__(self, total: int, plan_of: Callable[[int, dict], TrialSpec]) -> None:
        self.total = total
        self.plan_of = plan_of
        self.proposed = 0

    def next(self) -> TrialSpec | None:
        if self.proposed >= self.total:
            return None
        self.proposed += 1
        return self.plan_of(self.proposed, {})

    def restore(self, plan: TrialSpec) -> None:
        self.proposed = max(self.proposed, plan.number)

    def tell(self, plan: TrialSpec, metrics: Mapping[str, float] | None) -> None:
        pass


BuildRule = Callable[..., Scheduler]


class SimulatedStudy:
    """One driver process of a study, restored from the events of the processes before it."""

    def __init__(
        self,
        config: SchedulerConfig,
        total: int,
        events: list[dict],
        metric: str = "val_top1",
        *,
        epochs: int | Callable[[int], int] = EPOCHS,
        max_epochs: int = EPOCHS,
        build: BuildRule = build_scheduler,
    ) -> None:
        """epochs: of each trial, by its number. build: makes the scheduler."""
        self.events, self.config, self.metric = events, config, metric
        self.epochs = epochs
        self.record = StudyState()
        mode = "min" if metric == "val_loss" else "max"
        self.rule = build(self.record, config, metric, mode, max_epochs=max_epochs, seed=0, exploit=self._exploit)
        self.listing = Listing(total, self.plan_of)
        self.proposals = Proposals(self.record, self.listing, metric, mode)

        def observe(event: Mapping) -> None:
            self.rule.replay(event)
            self.proposals.replay(event)

        with preserved_generators():
            self.record.restore(
                ({**event, WHERE: f"journal/00001.jsonl: line {n}"} for n, event in enumerate(events, 1)),
                self.plan_of,
                observe,
            )
        self.record.journal = Events(events)
        self.scheduler = StudyScheduler(self.record, self.rule)
        self.rule.restore()

    def plan_of(self, number: int, point: dict) -> TrialSpec:
        epochs = self.epochs if isinstance(self.epochs, int) else self.epochs(number)
        recipe = Recipe(epochs=epochs)
        return TrialSpec(number=number, name=f"{number:03d}", point=point, parameters={}, recipe=recipe, dataset=None)

    def _exploit(self, trial: TrialState, source: TrialState, rng: random.Random) -> None:
        point = {"value": rng.random()}
        exploit = Exploit(
            trial=trial.plan.name, source=source.plan.name, epoch=trial.epochs_run, point=point, changed={}, explored={}
        )
        self.record.plan_exploit(exploit, self.plan_of(trial.plan.number, point))

    def run(
        self,
        values: dict[tuple[int, int], float],
        slots: int,
        order: random.Random,
        failing: Mapping[tuple[int, int], int] = {},
    ) -> None:
        """Run the study to its end.

        values: the metric by trial and epoch. order: selects the next trial to report. failing: trials and epochs at which
        they fail instead of reporting.
        """
        self.scheduler.begin(self.listing.total)
        queue = StudySearcher(self.rule, self.proposals, lambda trial: {"name": trial.plan.name}, lambda: slots)
        if self.config.name == "pbt":
            queue.propose_all()
        running: list[SimpleNamespace] = []
        while True:
            suggestion = queue.suggest("") if len(running) < slots else None
            if isinstance(suggestion, dict):
                running.append(SimpleNamespace(config=suggestion, error_file=None))
                self.record.of(running[-1]).state = "running"
            elif suggestion == Searcher.FINISHED and not running:
                return
            elif not running:
                raise AssertionError("deadlock: every trial waits for others, and none runs")
            else:
                self.report(running, order.choice(running), values, order, failing)

    def report(
        self,
        running: list,
        handle: SimpleNamespace,
        values: Mapping[tuple[int, int], float],
        order: random.Random,
        failing: Mapping[tuple[int, int], int] = {},
    ) -> None:
        """Report the next epoch of a trial."""
        trial = self.record.of(handle)
        last = trial.plan.recipe.epochs
        if trial.epochs_run == last:  # the process was lost after the last report, before the trial ended
            running.remove(handle)
            self.scheduler.on_trial_complete(None, handle, {})
            return
        if (trial.plan.number, trial.epochs_run + 1) in failing:
            running.remove(handle)
            self.scheduler.failed(handle)
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
        elif result["epoch"] == last:
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


def ended(events: list[dict]) -> set[str]:
    """Return the names of the trials that have ended."""
    return {event["trial"] for event in events if event["event"] == "ended"}


def learning_curves(trials: int, epochs: int, seed: int, noise: float = 0.01) -> dict[tuple[int, int], float]:
    """Return a metric by trial and epoch: curves that saturate at different levels and rates, with noise."""
    generator, found = random.Random(seed), {}
    for trial in range(1, trials + 1):
        level, rate = generator.betavariate(3, 2), generator.uniform(0.05, 0.5)
        for epoch in range(1, epochs + 1):
            found[trial, epoch] = level * (1 - math.exp(-rate * epoch)) + generator.gauss(0, noise)
    return found
