"""Tests the leaderboard and the live table: the order, the kept checkpoints, and the marked trials."""

import csv
import io
import math

import pytest

from landmark.config import BudgetConfig, Recipe
from landmark.search.budget import BudgetStopper
from landmark.search.progress import LiveTable
from landmark.search.results import timing
from landmark.search.spaces.space import TrialSpec
from landmark.search.state.leaderboard import (
    leaderboard_columns,
    leaderboard_rows,
    leaderboard_text,
    rank_trials,
    to_csv,
)
from landmark.search.state.state import StudyState, TrialState
from landmark.table import aligned, shown_metric, shown_value

KEYS = ["optimizer.lr", "epochs"]


def record(results: dict[str, list[float]], epochs: int = 3) -> StudyState:
    """Return the state of a study. results: val_top1 by epoch for each trial."""
    state = StudyState()
    for number, (name, values) in enumerate(results.items(), 1):
        plan = TrialSpec(
            number=number,
            name=name,
            point={},
            parameters={"optimizer.lr": 0.1, "epochs": epochs},
            recipe=Recipe(epochs=epochs),
            dataset=None,
        )
        trial = state.propose(plan)
        trial.state = "ended" if values else "waiting"
        for epoch, value in enumerate(values, 1):
            row = {"val_top1": value, "val_top5": 1.0, "val_loss": 1 - value, "val_macro_recall": value}
            trial.rows[epoch] = {**row, "images_per_s": 100.0 * number, "epoch_seconds": 2.0, "epoch": float(epoch)}
            trial.times[epoch] = float(epoch)
    return state


def best_of(trial: TrialState) -> tuple[int, str]:
    epoch = trial.best_epochs("val_top1", "max")[0]
    return epoch, f"trials/{trial.plan.name}/checkpoints/epoch-{epoch:04d}"


def test_trials_are_ranked_by_best_kept_epoch_with_failed_ones_last():
    found = record({"a": [0.2, 0.5, 0.4], "b": [0.6], "c": [0.9], "d": []})
    found.fail(found.trials["c"], "no memory")
    ranked = rank_trials(found, "val_top1", "max", lambda trial: (3, "a/3") if trial.plan.name == "a" else None)
    assert [s.record.plan.name for s in ranked] == ["b", "a", "c"]
    assert [s.rank for s in ranked] == [1, 2, None]
    assert (ranked[1].best_epoch, ranked[1].checkpoint) == (3, "a/3")
    assert (ranked[0].best_epoch, ranked[0].checkpoint) == (1, None)
    by_loss = rank_trials(found, "val_loss", "min", best_of)
    assert [s.best_epoch for s in by_loss] == [1, 2, 1]
    assert found.counts() == {"finished": 1, "stopped early": 1, "failed": 1, "not started": 1}
    assert found.epochs_run == 5


def test_the_pareto_front_has_all_non_dominated_trials():
    found = record({"a": [0.5], "b": [0.5], "c": [0.9], "d": [0.3]})
    found.trials["a"].weights, found.trials["c"].weights = 10, 5
    ranked = rank_trials(found, "val_top1", "max", best_of, ["val_top1", "images_per_s"])
    assert {s.record.plan.name: s.pareto for s in ranked} == {"a": False, "b": False, "c": True, "d": True}
    ranked = rank_trials(found, "val_loss", "min", best_of, ["val_loss", "parameters"])
    assert [s.record.plan.name for s in ranked if s.pareto] == ["c", "b"]
    assert all(s.pareto is None for s in rank_trials(found, "val_top1", "max", best_of))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("metric", "mode"), [("val_top1", "max"), ("val_loss", "min")])
def test_non_finite_trials_and_epochs_are_ranked_last(bad, metric, mode):
    found = record({"a": [bad, 0.2], "b": [bad], "c": [0.9, bad], "d": [0.5], "e": [bad, bad]})
    ranked = rank_trials(found, metric, mode, lambda trial: None, [metric, "images_per_s"])
    assert [s.record.plan.name for s in ranked] == ["c", "d", "a", "b", "e"]
    assert [s.best_epoch for s in ranked] == [1, 1, 2, 1, 1]
    assert [s.pareto for s in ranked] == [True, True, False, False, True]  # the last is the fastest
    target = 0.95 if mode == "max" else 0.05
    assert not BudgetStopper(BudgetConfig(target=target), found, metric, mode).stop_all()


def test_the_table_has_backbone_and_optimizer_even_if_not_searched():
    ranked = rank_trials(record({"a": [0.2, 0.5, 0.4], "b": [0.6]}), "val_top1", "max", best_of)
    ranked[0].test = {1: 0.5, 5: 0.75, 10: 1.0}
    columns = leaderboard_columns(KEYS)
    rows = list(csv.DictReader(io.StringIO(to_csv(leaderboard_rows(ranked, KEYS), columns))))
    assert list(rows[0]) == columns and len(set(columns)) == len(columns)
    assert (rows[0]["trial"], rows[0]["model.backbone"], rows[0]["optimizer.name"]) == ("b", "resnet18", "sgd")
    assert (rows[0]["status"], rows[1]["status"]) == ("stopped early", "finished")
    assert (rows[0]["test_top5"], rows[1]["test_top5"]) == ("0.75", "")
    assert rows[1]["seconds"] == "6"
    text = leaderboard_text(ranked, KEYS, "val_top1").splitlines()
    assert "stopped early" in text[1] and "1/3" in text[1] and "75.0%" in text[1]


def test_the_live_table_marks_trials_that_stopped_early(capsys):
    found = record({"a": [0.2, 0.5, 0.4], "b": [0.6], "c": []})
    table = LiveTable("study", found, "val_top1", "max", 3)
    table.print()
    output = capsys.readouterr().err
    assert "study: 2/3 trials ended (1 stopped early, 0 failed), 4 of 9 epochs" in output
    states = {line.split()[0]: line for line in output.splitlines()}
    assert "stopped early" in states["b"] and "1/3" in states["b"]
    assert "finished" in states["a"] and "c" not in states
    table.print()
    assert capsys.readouterr().err == ""


def test_gaps_between_trials_are_measured_per_process():
    found = record({"a": [0.1], "b": [0.1], "c": [0.1]})
    found.started_at = 5.0
    for name, process, first, last in (("a", "p", 10.0, 20.0), ("b", "p", 20.5, 30.0), ("c", "q", 11.0, 40.0)):
        trial = found.trials[name]
        trial.process, trial.first_step_at, trial.last_report_at = process, first, last
    times = timing(found)
    assert times["first_step_at"] == 10.0 and times["processes"] == 2
    assert times["between_trials_s"] == {"median": 0.5, "max": 0.5}
    assert timing(record({"a": []})) == {}


def test_cells_are_aligned_by_display_width():
    lines = aligned([["name", "share"], ["塔", "9.1%"], ["arch", "-"]]).splitlines()
    assert lines[0].index("share") + 5 == len(lines[0])
    assert len(lines[2]) == len(lines[0]) and lines[1].endswith("9.1%")
    assert aligned([]) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (shown_value(0.00012345), "0.000123"),
        (shown_value("x" * 40), "…" + "x" * 31),
        (shown_metric("val_top1", 0.1234), "12.3%"),
        (shown_metric("val_loss", 1.23456), "1.235"),
        (shown_metric("val_top1", None), "-"),
    ],
)
def test_values_are_short(text, expected):
    assert text == expected
