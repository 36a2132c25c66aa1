"""Data of a study's charts: learning curves, search progress, parallel coordinates, hyperparameter schedules."""

import numpy as np
import pytest

from landmark.reporting.study.series import (
    changed_keys,
    exploits_table,
    is_log,
    learning_curves,
    parallel_axes,
    schedule_of,
    search_progress,
)
from tests.reporting.studies import study_of

EXPLOITS = [
    {"trial": "b", "source": "a", "epoch": 4, "changed": {"optimizer.lr": [0.12, 0.08], "augment.name": ["x", "y"]}},
    {"trial": "b", "source": "c", "epoch": 2, "changed": {"optimizer.lr": [0.1, 0.12]}},
]


def trial(name: str, status: str, top1: float | None, **values) -> dict:
    return {"trial": name, "status": status, "val_top1": top1, **values}


def test_each_trial_with_a_value_has_a_curve(tmp_path):
    trials = [
        trial("001", "finished", 0.6),
        trial("b", "stopped early", 0.3),
        trial("c", "failed", None),
        trial("d", "failed", None),
    ]
    history = {"b": [0.3, 0.2], "001": [0.5, None, 0.6], "c": [0.1], "d": [None]}
    curves = learning_curves(study_of(tmp_path, trials, history))
    assert [(curve.trial, curve.status, curve.rank) for curve in curves] == [
        ("001", "finished", 1),
        ("b", "stopped early", 2),
        ("c", "failed", None),
    ]
    assert curves[0].epochs.tolist() == [1, 3] and curves[0].values.tolist() == [0.5, 0.6]


def test_search_progress_is_ordered_by_report_time(tmp_path):
    trials = [trial("a", "finished", 0.5), trial("b", "finished", 0.6)]
    history = {"a": [0.2, 0.5, 0.4], "b": [0.3, 0.6]}
    times = {("a", 1): 10.0, ("b", 1): 11.0, ("b", 2): 12.0, ("a", 2): 13.0, ("a", 3): 14.0}
    progress = search_progress(study_of(tmp_path, trials, history, reported_at=times))
    assert progress.values.tolist() == [0.2, 0.3, 0.6, 0.5, 0.4]
    assert progress.best.tolist() == [0.2, 0.3, 0.6, 0.6, 0.6]
    assert progress.improved.tolist() == [0, 1, 2]


def test_search_progress_without_report_times_is_ordered_by_epoch(tmp_path):
    trials = [trial("a", "finished", None, val_loss=1.0), trial("b", "finished", None, val_loss=1.5)]
    study = study_of(tmp_path, trials, {"a": [3.0, None, 1.0], "b": [2.0, 2.5]}, metric="val_loss")
    progress = search_progress(study)
    assert progress.values[[0, 1, 3, 4]].tolist() == [3.0, 2.0, 2.5, 1.0] and np.isnan(progress.values[2])
    assert progress.best.tolist() == [3.0, 2.0, 2.0, 2.0, 1.0]
    assert progress.improved.tolist() == [0, 1, 4]


def test_search_progress_without_values_has_no_best(tmp_path):
    progress = search_progress(study_of(tmp_path, [trial("a", "failed", None)], {"a": [None, None]}))
    assert np.isnan(progress.best).all() and len(progress.improved) == 0
    empty = search_progress(study_of(tmp_path / "none", [trial("a", "failed", None)], {}))
    assert len(empty.best) == len(empty.improved) == 0


def test_parallel_axes_position_trials_by_value_and_metric(tmp_path):
    learning_rates = [1e-4, 1e-3, 1e-2]
    names = ["sgd", "adam", "adam"]
    trials = [
        trial(f"t{n}", "finished", top1, **{"optimizer.lr": lr, "optimizer.name": name, "loader.image_size": 64})
        for n, (lr, name, top1) in enumerate(zip(learning_rates, names, [0.6, 0.4, 0.2], strict=True))
    ]
    trials.append(trial("lost", "failed", None, **{"optimizer.lr": 5.0, "optimizer.name": "rmsprop"}))
    keys = ["optimizer.lr", "optimizer.name", "loader.image_size"]
    axes = parallel_axes(study_of(tmp_path, trials, {}, parameters=keys))
    assert [axis.name for axis in axes] == ["optimizer.lr", "optimizer.name", "val_top1"]
    assert axes[0].positions.tolist() == pytest.approx([0, 0.5, 1])
    assert axes[0].ticks == [(0.0, "0.0001"), (pytest.approx(0.5), "0.001"), (1.0, "0.01")]
    assert axes[2].positions.tolist() == pytest.approx([1, 0.5, 0])
    adam, sgd = (height for height, _ in axes[1].ticks)
    assert [text for _, text in axes[1].ticks] == ["adam", "sgd"]
    assert axes[1].positions[0] == pytest.approx(sgd)
    assert axes[1].positions[1] > adam > axes[1].positions[2]
    assert all((axis.positions >= 0).all() and (axis.positions <= 1).all() for axis in axes)


def test_unset_values_are_below_the_numbers(tmp_path):
    trials = [
        trial(f"t{n}", "finished", 0.1 * n, **{"loss.label_smoothing": value})
        for n, value in enumerate([None, 0.05, 0.1, 0.2])
    ]
    axis = parallel_axes(study_of(tmp_path, trials, {}, parameters=["loss.label_smoothing"]))[0]
    assert axis.ticks[0] == (0.0, "none") and axis.positions[0] == 0
    assert axis.positions[1] == pytest.approx(axis.ticks[1][0]) and axis.positions[1] > 0.1
    assert axis.positions[3] == 1


def test_lowest_loss_is_at_the_top(tmp_path):
    trials = [trial(f"t{n}", "finished", None, val_loss=loss) for n, loss in enumerate([0.5, 2.0, 1.0])]
    (axis,) = parallel_axes(study_of(tmp_path, trials, {}, metric="val_loss"))
    assert axis.positions.tolist() == pytest.approx([1, 0, 2 / 3])
    assert (1.0, "0.5") in axis.ticks and (0.0, "2") in axis.ticks


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1e-4, 1e-2], True),
        ([1.0, 30.0], False),
        (list(np.geomspace(1e-4, 1e-1, 40)), True),
        ([0.001, *np.linspace(0.01, 0.2, 40)], False),
        ([0.0, 100.0], False),
        ([-1.0, 5.0], False),
        ([np.nan, np.nan], False),
    ],
)
def test_axis_is_logarithmic_if_most_values_span_more_than_thirtyfold(values, log):
    assert is_log(np.array(values)) is log


def test_hyperparameter_is_constant_until_the_next_exploit(tmp_path):
    trials = [trial(name, "finished", 0.5, **{"optimizer.lr": lr}) for name, lr in (("a", 0.3), ("b", 0.1))]
    study = study_of(tmp_path, trials, {"a": [0.5] * 6, "b": [0.5] * 6})
    schedules = schedule_of(study, EXPLOITS, "optimizer.lr")
    assert {name: epochs.tolist() for name, (epochs, _) in schedules.items()} == {"a": [0, 6], "b": [0, 2, 4, 6]}
    assert schedules["a"][1].tolist() == [0.3, 0.3]
    assert schedules["b"][1].tolist() == [0.1, 0.12, 0.08, 0.08]
    assert changed_keys(EXPLOITS) == ["optimizer.lr"]


def test_exploits_are_ordered_by_epoch():
    table = exploits_table(EXPLOITS)
    assert table["epoch"].tolist() == [2, 4]
    assert table["what changed"].tolist() == ["optimizer.lr 0.1 → 0.12", "optimizer.lr 0.12 → 0.08, augment.name x → y"]
