"""Data for the page's trial comparison, such as one model trained for 10 and for 30 epochs."""

from typing import Any

import pandas as pd

from landmark.reporting.study.effects import shown_value
from landmark.reporting.tables import STOPPED, TOPK, StudyTables, metric_label

COMPARED_TRIALS = 100
"""Maximum number of trials to choose from."""
POINTS = 300
"""Maximum number of points per curve on the page."""
CURVES = ("val_top1", "val_top5", "val_loss", "train_loss", "train_top1")
FRACTION_COLUMNS = ("val_top1", "val_top5", "val_macro_recall", *(f"test_top{k}" for k in TOPK))


def compare_data(study: StudyTables) -> dict[str, Any]:
    """Return the data of the page's trial comparison, for at most 100 trials, best first.

    trials: name, status, settings and results (title -> text), curves (metric -> [epochs, values]). curves: metric ->
    title and whether the values are fractions. selected: the two trials that are shown first.
    """
    curves = [name for name in CURVES if name in study.history]
    by_trial = dict(iter(study.history.sort_values("epoch", kind="stable").groupby("trial")))
    board = study.board[study.board["trial"].isin(set(by_trial))].head(COMPARED_TRIALS)
    settings = list(dict.fromkeys(["model.backbone", "optimizer.name", "epochs", "dataset", *study.keys]))
    results = ["epochs_run", "best_epoch", *FRACTION_COLUMNS, "val_loss", "images_per_s", "parameters", "seconds"]
    trials = []
    for row in board.to_dict("records"):
        trial = str(row["trial"])
        trials.append(
            {
                "name": trial,
                "status": row["status"],
                "settings": {key: _shown(key, row[key]) for key in settings if key in row},
                "results": {_title(key): _shown(key, row[key]) for key in results if key in row},
                "curves": {name: _points(by_trial[trial], name) for name in curves},
            }
        )
    titles = {name: {"title": _title(name), "fraction": "loss" not in name} for name in curves}
    return {"trials": trials, "curves": titles, "selected": default_pair(board)}


def default_pair(board: pd.DataFrame) -> list[int]:
    """Return the positions of the two trials that are shown first.

    If some trials differ only in their number of epochs, returns the best trial with such a counterpart, and its best
    counterpart. Otherwise returns the two best trials.
    """
    finished = board[board["status"] != STOPPED]
    keys = [key for key in ("model.backbone", "optimizer.name", "dataset") if key in board]
    if {"model.backbone", "optimizer.name", "epochs"} <= set(board):
        positions = {trial: position for position, trial in enumerate(board["trial"])}
        by_config = finished.groupby(keys, sort=False, dropna=False)
        candidates = [trials for _, trials in by_config if trials["epochs"].nunique() > 1]
        if candidates:
            trials = min(candidates, key=lambda trials: positions[trials["trial"].iloc[0]])
            first = trials.iloc[0]
            other = trials[trials["epochs"] != first["epochs"]].iloc[0]
            pair = sorted([first, other], key=lambda row: row["epochs"])
            return [positions[row["trial"]] for row in pair]
    return [0, min(1, max(0, len(board) - 1))]


def _points(history: pd.DataFrame, name: str) -> tuple[list[int], list[float]]:
    rows = history.dropna(subset=[name])
    rows = rows.iloc[:: max(1, -(-len(rows) // POINTS))]
    finite = rows[rows[name].abs() < float("inf")]
    return finite["epoch"].astype(int).tolist(), [float(f"{value:.4g}") for value in finite[name]]


def _title(name: str) -> str:
    titles = {"epochs_run": "epochs run", "best_epoch": "best epoch"}
    titles |= {f"test_top{k}": f"test top-{k}" for k in TOPK}
    return titles.get(name) or metric_label(name)


def _shown(name: str, value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if name in FRACTION_COLUMNS:
        return f"{value:.2%}"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else shown_value(value)
