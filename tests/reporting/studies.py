"""Study folders for tests, in the format that `landmark tune` writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from landmark.reporting.tables import StudyTables, read_study
from landmark.storage import locate

TEST_METRICS = ("test_top1", "test_top5", "test_top10")


def write_study(
    folder: Path,
    trials: Sequence[Mapping[str, Any]],
    history: Mapping[str, Sequence[float | None]],
    reported_at: Mapping[tuple[str, int], float] | None = None,
    **summary: Any,
) -> Path:
    """Write a study.

    trials: leaderboard rows. history: metric per epoch, by trial. summary: additional keys of study.json. reported_at:
    Unix seconds by trial and epoch. None: the column is missing, as in studies of earlier versions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metric = summary.get("metric", "val_top1")
    defaults = {"model.backbone": "resnet18", "optimizer.name": "adam", "epochs": 4, **dict.fromkeys(TEST_METRICS)}
    board = pd.DataFrame([defaults | dict(trial) for trial in trials])
    board["val_top1"] = board.get("val_top1", float("nan"))
    board["epochs_run"] = [len(history.get(name, ())) for name in board["trial"]]
    board.insert(0, "rank", [n if s != "failed" else None for n, s in enumerate(board["status"], 1)])
    board.to_csv(folder / "leaderboard.csv", index=False)
    rows = [
        {"trial": name, "epoch": epoch, metric: value}
        for name, values in history.items()
        for epoch, value in enumerate(values, 1)
    ]
    table = pd.DataFrame(rows, columns=["trial", "epoch", metric])
    if reported_at is not None:
        table["reported_at"] = [
            reported_at[trial, epoch] for trial, epoch in zip(table["trial"], table["epoch"], strict=True)
        ]
    table.to_csv(folder / "history.csv", index=False)
    counts = {"trials": len(board), "stopped_early": int((board["status"] == "stopped early").sum())}
    values = {"name": "s", "metric": metric, "dataset": "d", "epochs_run": len(table), **counts, **summary}
    (folder / "study.json").write_text(json.dumps(values))
    return folder


def study_of(folder: Path, *args: Any, **kwargs: Any) -> StudyTables:
    """Write a study and read it."""
    return read_study(locate(str(write_study(folder, *args, **kwargs))))
