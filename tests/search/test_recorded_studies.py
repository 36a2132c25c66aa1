"""Tests that Ray Tune's ASHA decides like the rule of the earlier versions, on recorded studies."""

import random

import pytest

from landmark.config import SchedulerConfig
from tests.support.earlier_schedulers import build_earlier
from tests.support.simulated_study import SimulatedStudy, decided, learning_curves

EPOCHS = 27


def reports(events: list[dict]) -> list[tuple[str, int]]:
    return [(event["trial"], event["row"]["epoch"]) for event in events if event["event"] == "report"]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize(("grace", "lengths"), [(1, [EPOCHS]), (2, [EPOCHS]), (1, [3, 9, 20, EPOCHS])])
def test_asha_decides_like_the_earlier_rule(factor, grace, lengths):
    """200 trials, eight at a time. A study whose decisions are equal has the same reports in the same order."""
    config = SchedulerConfig(name="asha", grace_epochs=grace, reduction_factor=factor)
    generator, options = random.Random(factor), {"max_epochs": EPOCHS}
    by_number = {number: generator.choice(lengths) for number in range(1, 201)}
    earlier: list[dict] = []
    now: list[dict] = []
    for build, events in (({"build": build_earlier}, earlier), ({}, now)):
        study = SimulatedStudy(config, 200, events, epochs=by_number.__getitem__, **options, **build)
        study.run(learning_curves(200, EPOCHS, factor), 8, random.Random(1))
    assert reports(now) == reports(earlier) and decided(now) == decided(earlier)
    assert sum(decisions == ["stop"] for decisions in decided(now).values()) > 60


def test_a_recorded_journal_is_rebuilt_without_a_difference():
    """The journal of the earlier rule, marked as if Ray Tune's ASHA had written it, passes the comparison of a restore."""
    config, events = SchedulerConfig(name="asha"), []
    study = SimulatedStudy(config, 60, events, max_epochs=EPOCHS, epochs=EPOCHS, build=build_earlier)
    study.run(learning_curves(60, EPOCHS, 0), 8, random.Random(0))
    marked = [{**event, **({"scheduler": "x"} if event["event"] == "driver" else {})} for event in events]
    restored = SimulatedStudy(config, 60, marked, max_epochs=EPOCHS, epochs=EPOCHS)
    rungs = restored.rule.scheduler._brackets[0]._rungs
    assert [len(scores) for _, scores in rungs][-1] == 60 and sum(len(scores) for _, scores in rungs) > 80
