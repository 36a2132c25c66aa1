"""Schedulers count our own epochs; budgets end a study."""

import time

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule

from landmark.config import BudgetConfig, SchedulerConfig
from landmark.search.schedulers import BudgetStopper, build_scheduler


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("none", FIFOScheduler),
        ("asha", AsyncHyperBandScheduler),
        ("hyperband", HyperBandScheduler),
        ("median_stopping", MedianStoppingRule),
    ],
)
def test_each_name_is_its_scheduler_over_epochs(name, kind):
    scheduler = build_scheduler(SchedulerConfig(name=name), 9)
    assert type(scheduler) is kind
    if name != "none":
        assert scheduler._time_attr == "epoch"


def test_a_budget_of_epochs_counts_each_epoch_of_a_trial_once():
    stopper = BudgetStopper(BudgetConfig(epochs=3))
    for trial, epoch in (("a", 1), ("a", 1), ("b", 1), ("b", 0)):
        assert stopper(trial, {"epoch": epoch}) is False
    assert not stopper.stop_all()
    stopper("b", {"epoch": 2})
    assert stopper.stop_all()


def test_a_budget_of_seconds_ends_and_none_never_does():
    stopper = BudgetStopper(BudgetConfig(seconds=0.01))
    time.sleep(0.02)
    assert stopper.stop_all()
    assert not BudgetStopper(BudgetConfig()).stop_all()
