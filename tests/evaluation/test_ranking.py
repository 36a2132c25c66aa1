"""The order of values: NaN and infinity are the worst of a metric in both directions, for every choice of a best one."""

import math

import pytest
import torch

from landmark.checkpoints.format import CheckpointMeta, Snapshot
from landmark.checkpoints.store import CheckpointStore
from landmark.config import CheckpointConfig, OptimizerConfig, Recipe, ScheduleConfig
from landmark.evaluation.ranking import score
from landmark.storage import locate
from landmark.training.compute.optim import Schedule

NOT_FINITE = [math.nan, math.inf, -math.inf]
DIRECTIONS = [("val_top1", "max", 0.2, 0.7), ("val_loss", "min", 7.0, 2.0)]
"""Metric, mode, a poor and a good value."""


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("metric", "mode", "poor", "good"), DIRECTIONS)
def test_values_that_are_not_finite_are_the_worst(value, metric, mode, poor, good):
    assert sorted([good, value, poor], key=lambda found: -score(found, mode))[:2] == [good, poor]
    assert score(value, mode) == -math.inf


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("metric", "mode", "poor", "good"), DIRECTIONS)
def test_a_first_epoch_that_is_not_finite_does_not_stay_the_best_checkpoint(value, metric, mode, poor, good, tmp_path):
    store = CheckpointStore(locate(tmp_path), metric, mode, CheckpointConfig(keep=1))
    best = []
    for epoch, found in enumerate((value, poor, good, value, poor), 1):
        meta = CheckpointMeta(
            backbone="deck_mlp",
            classes=["a"],
            image_size=16,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            dataset="d",
            epoch=epoch,
            metrics={},
        )
        weights = {"w": torch.zeros(1)}
        store.save(
            Snapshot(name=f"epoch-{epoch:04d}", weights=weights, state={}, meta=meta, recipe=Recipe()), {metric: found}
        )
        store.close()
        store = CheckpointStore(locate(tmp_path), metric, mode, CheckpointConfig(keep=1))  # as read by another process
        best.append(store.index["best"])
    assert best == ["epoch-0001", "epoch-0002", "epoch-0003", "epoch-0003", "epoch-0003"]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("metric", "mode", "poor", "good"), DIRECTIONS)
def test_plateau_lowers_the_rate_when_the_metric_is_not_finite(value, metric, mode, poor, good):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Schedule(
        optimizer,
        ScheduleConfig(name="plateau", patience=1, factor=0.5),
        optimizer_config=OptimizerConfig(),
        steps_per_epoch=1,
        epochs=9,
        mode=mode,
    )
    for found in (value, poor, good, value, value):
        schedule.epoch_end(found)
    assert schedule.reduction == 0.5 and schedule.best == score(good, mode)
