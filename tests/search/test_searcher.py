"""Tests the searcher of Ray Tune: waiting trials before new ones, no more trials than capacity, and an end."""

import asyncio

from ray import cloudpickle
from ray.tune.search import Searcher

from landmark.config import Recipe, SchedulerConfig
from landmark.search.schedulers.base import Scheduler
from landmark.search.searcher import Proposals, StudySearcher
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.state import Exploit, StudyState
from landmark.search.trials.trial import ReportChannel

MAX = ("val_top1", "max")


class ShortSampler:
    """A sampler that runs out before its total."""

    total = 9

    def __init__(self, count: int) -> None:
        self.left = [
            TrialSpec(number=n, name=f"{n:03d}", point={}, parameters={}, recipe=Recipe(epochs=9), dataset=None)
            for n in range(1, count + 1)
        ]
        self.results: dict[str, float | None] = {}

    def next(self) -> TrialSpec | None:
        return self.left.pop(0) if self.left else None

    def restore(self, plan: TrialSpec) -> None:
        raise AssertionError("no trial is restored here")

    def tell(self, plan, metrics) -> None:
        assert plan.name not in self.results
        self.results[plan.name] = metrics and metrics["val_top1"]


def queue(rule: Scheduler, sampler: ShortSampler, max_running: int) -> StudySearcher:
    proposals = Proposals(rule.record, sampler, *MAX)
    return StudySearcher(rule, proposals, lambda trial: {"name": trial.plan.name}, lambda: max_running)


def test_the_searcher_state_that_ray_tune_stores_has_no_credentials():
    secret = "http://me:secret@host"
    rule = Scheduler(StudyState(), SchedulerConfig(), *MAX)
    searcher = StudySearcher(
        rule, Proposals(rule.record, ShortSampler(1), *MAX), lambda trial: {"uri": secret}, lambda: 1
    )
    assert b"secret" not in cloudpickle.dumps(searcher) and b"secret" in cloudpickle.dumps(searcher.values_of)


def test_trials_are_limited_by_capacity_and_reported_once():
    record, sampler = StudyState(), ShortSampler(3)
    searcher = queue(Scheduler(record, SchedulerConfig(), *MAX), sampler, max_running=2)
    assert [searcher.suggest("a"), searcher.suggest("b"), searcher.suggest("c")] == [
        {"trial": {"name": "001"}},
        {"trial": {"name": "002"}},
        None,
    ]
    first, second = record.trials.values()
    for epoch, value in ((1, 0.2), (2, 0.7), (3, 0.4)):
        first.rows[epoch] = {"val_top1": value}
    record.end(first)
    record.fail(second, "no memory")
    assert searcher.suggest("d") == {"trial": {"name": "003"}}
    record.end(record.trials["003"])
    assert searcher.suggest("e") == Searcher.FINISHED
    assert sampler.results == {"001": 0.7, "002": None, "003": None}


def test_a_trial_fetches_weights_before_their_source_continues():
    record, sampler = StudyState(), ShortSampler(2)
    searcher = queue(Scheduler(record, SchedulerConfig(), *MAX), sampler, max_running=1)
    searcher.propose_all()
    one, two = record.trials.values()
    one.rows[1] = two.rows[1] = {"val_top1": 0.5}
    exploit = Exploit(trial="002", source="001", epoch=1, point={}, changed={}, explored={})
    record.plan_exploit(exploit, two.plan)
    assert searcher.suggest("a") == {"trial": {"name": "002"}}


def test_results_are_told_in_the_order_of_the_journal_and_again_after_a_retry():
    record, told = StudyState(), []

    class Recording(ShortSampler):
        def restore(self, plan: TrialSpec) -> None:
            told.append((plan.name, "proposed"))

        def tell(self, plan, metrics) -> None:
            told.append((plan.name, metrics and metrics["val_top1"]))

    proposals = Proposals(record, Recording(3), *MAX)
    one, two = (record.propose(proposals.next()) for _ in range(2))
    two.rows[1] = {"val_top1": 0.4}
    record.end(two)
    record.fail(one, "no memory")
    proposals.next()
    assert told == [("002", 0.4), ("001", None)]
    (again,) = record.retry_failed()
    again.rows[1] = {"val_top1": 0.6}
    record.end(again)
    proposals.next()
    assert told[2:] == [("001", 0.6)]


def test_a_pending_report_is_answered_when_its_trial_ends():
    async def scenario() -> list[bool]:
        channel = ReportChannel()
        reports = [asyncio.create_task(channel.report({"epoch": epoch})) for epoch in (1, 2)]
        assert (await channel.take(1.0)) == {"epoch": 1}
        await channel.go_on(ended=True)  # the second one was never taken
        answers = [await asyncio.wait_for(task, 1.0) for task in reports]
        return [*answers, await channel.report({"epoch": 3})]

    assert asyncio.run(scenario()) == [False, False, False]
