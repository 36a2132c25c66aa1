"""The leaderboard of a study: trials ranked by their best epoch, as CSV and as a text table."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from landmark.evaluation.ranking import score
from landmark.search.state.state import METRICS, StudyState, TrialState
from landmark.table import aligned, shown_metric, shown_value

TESTED = (1, 5, 10)
"""k of the top-k accuracies on the test split."""
SHOWN_TRIALS = 40


@dataclass(kw_only=True)
class LeaderboardEntry:
    """One trial's entry in the leaderboard."""

    record: TrialState
    rank: int | None = None
    """1 for the best trial; None for a failed one."""
    best_epoch: int | None = None
    """Epoch with the best validation metric whose checkpoint is kept."""
    checkpoint: str | None = None
    """Path of that checkpoint, relative to the study."""
    test: dict[int, float] = field(default_factory=dict)
    """k -> top-k accuracy on the test split; empty if the trial was not tested."""
    pareto: bool | None = None
    """Whether no other trial is better in one objective and as good or better in all; None with a single objective."""

    @property
    def best(self) -> dict[str, float]:
        """Metrics of the best epoch."""
        return self.record.rows[self.best_epoch] if self.best_epoch is not None else {}


def rank_trials(
    record: StudyState,
    metric: str,
    mode: str,
    find: Callable[[TrialState], tuple[int, str] | None],
    objectives: Sequence[str] = (),
) -> list[LeaderboardEntry]:
    """Return the trials that started: best first, failed trials last.

    find: returns a trial's best epoch whose checkpoint is kept, and the checkpoint's path relative to the study.
    objectives: the searcher's objectives, if there are more than the metric.
    """
    standings = []
    for trial in record.trials.values():
        if trial.status() == "not started":
            continue
        epochs, kept = trial.best_epochs(metric, mode), find(trial)
        if kept is not None and kept[0] in trial.rows:
            standings.append(LeaderboardEntry(record=trial, best_epoch=kept[0], checkpoint=kept[1]))
        else:
            standings.append(LeaderboardEntry(record=trial, best_epoch=epochs[0] if epochs else None))
    standings.sort(key=lambda s: (s.record.status() == "failed", -score(s.best.get(metric, math.nan), mode)))
    for place, standing in enumerate(standings, 1):
        standing.rank = place if standing.record.status() != "failed" else None
    if len(objectives) > 1:
        mark_pareto([s for s in standings if s.rank is not None and s.best], objectives, mode)
    return standings


def mark_pareto(standings: Sequence[LeaderboardEntry], objectives: Sequence[str], mode: str) -> None:
    """Mark the Pareto-optimal trials. The metric is the first objective and has a direction.

    Of the others, higher is better, except for `parameters`: fewer is better.
    """

    def values(standing: LeaderboardEntry) -> list[float]:
        found = {**standing.best, "parameters": -float(standing.record.weights or 0)}
        return [score(found[name], mode if place == 0 else "max") for place, name in enumerate(objectives)]

    points = [values(standing) for standing in standings]
    for standing, point in zip(standings, points, strict=True):
        standing.pareto = not any(
            other != point and all(a >= b for a, b in zip(other, point, strict=True)) for other in points
        )


def leaderboard_rows(standings: Sequence[LeaderboardEntry], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of leaderboard.csv; `keys` are the searched parameters."""
    return [_row(standing, keys) for standing in standings]


def _row(standing: LeaderboardEntry, keys: Sequence[str]) -> dict[str, Any]:
    trial, best = standing.record, standing.best
    speeds = [row["images_per_s"] for row in trial.rows.values()]
    return {
        "rank": standing.rank,
        "trial": trial.plan.name,
        "status": trial.status(),
        "model.backbone": trial.plan.recipe.model.backbone,
        "optimizer.name": trial.plan.recipe.optimizer.name,
        **{key: trial.plan.parameters[key] for key in keys},
        "epochs": trial.plan.recipe.epochs,
        "epochs_run": trial.epochs_run,
        "best_epoch": standing.best_epoch,
        **{key: best.get(key) for key in ("val_loss", "val_top1", "val_top5", "val_macro_recall")},
        **{f"test_top{k}": standing.test.get(k) for k in TESTED},
        "images_per_s": sum(speeds) / len(speeds) if speeds else None,
        "parameters": trial.weights,
        "pareto": standing.pareto,
        "seconds": trial.seconds,
        "checkpoint": standing.checkpoint,
        "error": trial.error,
    }


def history_rows(record: StudyState) -> list[dict[str, Any]]:
    """Return the rows of history.csv: one per trial and epoch."""
    return [
        {"trial": trial.plan.name, "epoch": epoch}
        | {key: row.get(key) for key in METRICS if key != "epoch"}
        | {"reported_at": f"{trial.times[epoch]:.3f}"}
        for trial in record.trials.values()
        for epoch, row in sorted(trial.rows.items())
    ]


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as CSV text: floats with six significant digits, None as an empty cell, lists and dicts as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def leaderboard_columns(keys: Sequence[str]) -> list[str]:
    """Return the columns of leaderboard.csv in order; backbone, optimizer and epochs occur once, searched or not."""
    searched = [key for key in dict.fromkeys(["model.backbone", "optimizer.name", *keys]) if key != "epochs"]
    metrics = ["val_loss", "val_top1", "val_top5", "val_macro_recall", *(f"test_top{k}" for k in TESTED)]
    return [
        *("rank", "trial", "status", *searched, "epochs", "epochs_run", "best_epoch", *metrics),
        *("images_per_s", "parameters", "pareto", "seconds", "checkpoint", "error"),
    ]


def leaderboard_text(standings: Sequence[LeaderboardEntry], keys: Sequence[str], metric: str) -> str:
    """Return the leaderboard as an aligned text table."""
    searched = [key for key in keys if key != "epochs"]
    metrics = list(dict.fromkeys([metric, "val_top1", "val_top5"]))
    tested = [k for k in TESTED if any(k in standing.test for standing in standings)]
    header = ["rank", "trial", *searched, "status", "epochs", *metrics, *(f"test_top{k}" for k in tested)]
    rows = [
        [
            str(standing.rank or "-"),
            standing.record.plan.name.split("-", 1)[0],
            *(shown_value(standing.record.plan.parameters[key]) for key in searched),
            standing.record.status(),
            f"{standing.record.epochs_run}/{standing.record.plan.recipe.epochs}",
            *(shown_metric(name, standing.best.get(name)) for name in metrics),
            *(shown_metric("", standing.test.get(k)) for k in tested),
        ]
        for standing in standings[:SHOWN_TRIALS]
    ]
    more = len(standings) - len(rows)
    return aligned([header, *rows]) + (f"\n  … and {more} more in leaderboard.csv" if more else "")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
