"""Data for the page's comparison of any two trials of a study, such as 10 and 30 epochs of one model."""

from typing import Any

import pandas as pd

from landmark.reporting.study.effects import shown_value
from landmark.reporting.tables import STOPPED, TOPK, StudyTables, named

COMPARED_TRIALS = 100
POINTS = 300
"""Maximum number of points per curve on the page."""
CURVES = ("val_top1", "val_top5", "val_loss", "train_loss", "train_top1")
SHARES = ("val_top1", "val_top5", "val_macro_recall", *(f"test_top{k}" for k in TOPK))


def compare_data(study: StudyTables) -> dict[str, Any]:
    """Return the data of the page's comparison, for at most 100 trials, best first.

    trials: name, status, settings and results (title -> text), curves (metric -> [epochs, values]). curves: metric ->
    title and whether the values are fractions. chosen: the two trials that are shown first.
    """
    curves = [name for name in CURVES if name in study.history]
    parts = dict(iter(study.history.sort_values("epoch", kind="stable").groupby("trial")))
    board = study.board[study.board["trial"].isin(set(parts))].head(COMPARED_TRIALS)
    settings = list(dict.fromkeys(["model.backbone", "optimizer.name", "epochs", "dataset", *study.keys]))
    results = ["epochs_run", "best_epoch", *SHARES, "val_loss", "images_per_s", "parameters", "seconds"]
    trials = []
    for row in board.to_dict("records"):
        trial = str(row["trial"])
        trials.append(
            {
                "name": trial,
                "status": row["status"],
                "settings": {key: _shown(key, row[key]) for key in settings if key in row},
                "results": {_title(key): _shown(key, row[key]) for key in results if key in row},
                "curves": {name: _points(parts[trial], name) for name in curves},
            }
        )
    titles = {name: {"title": _title(name), "share": "loss" not in name} for name in curves}
    return {"trials": trials, "curves": titles, "chosen": chosen_pair(board)}


def chosen_pair(board: pd.DataFrame) -> list[int]:
    """Return the positions of the two trials that are shown first.

    If there are trials that differ only in their epochs, as in the reference study's "10 vs 30 epochs": the best trial
    with such a counterpart, and its best counterpart. Otherwise the two best trials.
    """
    finished = board[board["status"] != STOPPED]
    groups = [key for key in ("model.backbone", "optimizer.name", "dataset") if key in board]
    if {"model.backbone", "optimizer.name", "epochs"} <= set(board):
        places = {trial: place for place, trial in enumerate(board["trial"])}
        parts = [part for _, part in finished.groupby(groups, sort=False, dropna=False) if part["epochs"].nunique() > 1]
        if parts:
            part = min(parts, key=lambda part: places[part["trial"].iloc[0]])
            first = part.iloc[0]
            other = part[part["epochs"] != first["epochs"]].iloc[0]
            pair = sorted([first, other], key=lambda row: row["epochs"])
            return [places[row["trial"]] for row in pair]
    return [0, min(1, max(0, len(board) - 1))]


def _points(history: pd.DataFrame, name: str) -> tuple[list[int], list[float]]:
    rows = history.dropna(subset=[name])
    rows = rows.iloc[:: max(1, -(-len(rows) // POINTS))]
    finite = rows[rows[name].abs() < float("inf")]
    return finite["epoch"].astype(int).tolist(), [float(f"{value:.4g}") for value in finite[name]]


def _title(name: str) -> str:
    words = {"epochs_run": "epochs run", "best_epoch": "best epoch"}
    words |= {f"test_top{k}": f"test top-{k}" for k in TOPK}
    return words.get(name) or named(name)


def _shown(name: str, value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if name in SHARES:
        return f"{value:.2%}"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else shown_value(value)
