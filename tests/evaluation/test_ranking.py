"""Ranking of metric values: NaN and infinity are the worst in both directions, wherever a best value is selected."""

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
"""Metric, mode, a poor value and a good value."""


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("metric", "mode", "poor", "good"), DIRECTIONS)
def test_non_finite_values_rank_worst(value, metric, mode, poor, good):
    assert sorted([good, value, poor], key=lambda found: -score(found, mode))[:2] == [good, poor]
    assert score(value, mode) == -math.inf


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("metric", "mode", "poor", "good"), DIRECTIONS)
def test_a_non_finite_first_epoch_does_not_stay_the_best_checkpoint(value, metric, mode, poor, good, tmp_path):
    store = CheckpointStore(locate(tmp_path), metric, mode, CheckpointConfig(keep=1))
    best = []
    for epoch, found in enumerate((value, poor, good, value, poor), 1):
        meta = CheckpointMeta(
            backbone="reference_mlp",
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
def test_plateau_lowers_the_learning_rate_if_the_metric_is_not_finite(value, metric, mode, poor, good):
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
