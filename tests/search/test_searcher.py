"""What Ray Tune is given: trials that wait before new ones, never more than there is room for, and an end."""

import asyncio

from ray import cloudpickle
from ray.tune.search import Searcher

from landmark.config import Recipe, SchedulerConfig
from landmark.search.schedulers import HyperBand, Rule
from landmark.search.searcher import TrialQueue
from landmark.search.spaces.space import TrialPlan
from landmark.search.state.state import Exploit, StudyRecord
from landmark.search.trials.trial import Relay

MAX = ("val_top1", "max")


class Few:
    """Proposals that run out before the number that was told."""

    total = 9

    def __init__(self, count: int) -> None:
        self.left = [
            TrialPlan(number=n, name=f"{n:03d}", point={}, parameters={}, recipe=Recipe(epochs=9), dataset=None)
            for n in range(1, count + 1)
        ]
        self.heard: dict[str, float | None] = {}

    def next(self) -> TrialPlan | None:
        return self.left.pop(0) if self.left else None

    def adopt(self, plan: TrialPlan) -> None:
        raise AssertionError("nothing is taken up here")

    def told(self, plan, metrics) -> None:
        assert plan.name not in self.heard
        self.heard[plan.name] = metrics and metrics["val_top1"]


def queue(rule: Rule, proposals: Few, most: int) -> TrialQueue:
    return TrialQueue(rule, proposals, lambda trial: {"name": trial.plan.name}, most)


def test_what_ray_tune_stores_of_the_queue_holds_no_credentials():
    secret = "http://me:secret@host"
    given = TrialQueue(Rule(StudyRecord(), SchedulerConfig(), *MAX), Few(1), lambda trial: {"uri": secret}, 1)
    assert b"secret" not in cloudpickle.dumps(given) and b"secret" in cloudpickle.dumps(given.values_of)


def test_trials_are_given_up_to_the_room_and_the_searcher_hears_of_each_once():
    record, proposals = StudyRecord(), Few(3)
    given = queue(Rule(record, SchedulerConfig(), *MAX), proposals, most=2)
    assert [given.suggest("a"), given.suggest("b"), given.suggest("c")] == [
        {"trial": {"name": "001"}},
        {"trial": {"name": "002"}},
        None,
    ]
    first, second = record.trials.values()
    for epoch, value in ((1, 0.2), (2, 0.7), (3, 0.4)):
        first.rows[epoch] = {"val_top1": value}
    record.end(first)
    record.fail(second, "no memory")
    assert given.suggest("d") == {"trial": {"name": "003"}}
    record.end(record.trials["003"])
    assert given.suggest("e") == Searcher.FINISHED
    assert proposals.heard == {"001": 0.7, "002": None, "003": None}


def test_a_trial_fetches_the_weights_of_another_before_that_goes_on():
    record, proposals = StudyRecord(), Few(2)
    given = queue(Rule(record, SchedulerConfig(), *MAX), proposals, most=1)
    given.propose_all()
    one, two = record.trials.values()
    one.rows[1] = two.rows[1] = {"val_top1": 0.5}
    exploit = Exploit(trial="002", source="001", epoch=1, point={}, changed={}, explored={})
    record.plan_exploit(exploit, two.plan)
    assert given.suggest("a") == {"trial": {"name": "002"}}


def test_a_bracket_does_not_wait_for_trials_that_never_come():
    record, proposals = StudyRecord(), Few(4)
    rule = HyperBand(record, SchedulerConfig(name="hyperband", brackets=1), *MAX, max_epochs=9, totals=[9], seed=0)
    given = queue(rule, proposals, most=4)
    for number in range(1, 5):
        assert given.suggest(str(number)) is not None
    for number, trial in enumerate(record.trials.values(), 1):
        trial.rows[1], trial.state, trial.handed = {"val_top1": 0.1 * number}, "paused", False
        rule.settle()
        assert trial.state == "paused"  # the bracket is of nine
    assert given.suggest("next") == {"trial": {"name": "004"}}
    assert [trial.state for trial in record.trials.values()] == ["ended"] * 3 + ["waiting"]


def test_a_report_that_waits_when_its_trial_ends_is_answered():
    async def scene() -> list[bool]:
        relay = Relay()
        reports = [asyncio.create_task(relay.report({"epoch": epoch})) for epoch in (1, 2)]
        assert (await relay.take(1.0)) == {"epoch": 1}
        await relay.go_on(ended=True)  # the second one was never taken
        answers = [await asyncio.wait_for(task, 1.0) for task in reports]
        return [*answers, await relay.report({"epoch": 3})]

    assert asyncio.run(scene()) == [False, False, False]
