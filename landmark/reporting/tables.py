"""Tables of a study: the files of its folder, the model summary and the optimizer x epochs table."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from landmark.config import UserError
from landmark.storage import Damaged, Location, NotFound

TOPK = (1, 5, 10)
FINISHED, STOPPED, FAILED, NOT_STARTED = "finished", "stopped early", "failed", "not started"
"""Trial statuses."""
METRIC_NAMES = {
    "val_top1": "validation top-1",
    "val_top5": "validation top-5",
    "val_macro_recall": "validation macro recall",
    "val_loss": "validation loss",
    "train_top1": "training top-1",
    "train_loss": "training loss",
    "images_per_s": "training images/s",
    "parameters": "model parameters",
}
"""Display names of metrics."""
LEGACY_SEARCHED_KEYS = ("dataset", "epochs")
"""Searched keys without a dot, for studies from earlier versions that do not record their searched keys."""


@dataclass(kw_only=True, frozen=True)
class StudyTables:
    """Contents of a study folder."""

    summary: dict[str, Any]
    """study.json."""
    board: pd.DataFrame
    """leaderboard.csv: one row per trial, best first."""
    history: pd.DataFrame
    """history.csv: one row per trial and epoch."""
    metric: str
    """Metric that ranks the trials. It is a column of both tables, float, NaN if missing."""
    mode: str
    """max or min: whether higher or lower values of the metric are better."""
    keys: list[str]
    """Searched keys that are columns of the leaderboard."""

    @property
    def results(self) -> pd.DataFrame:
        """Leaderboard rows of the trials that did not fail and have a value of the metric."""
        return self.board[~self.board["status"].isin((FAILED, NOT_STARTED)) & self.board[self.metric].notna()]

    @property
    def objectives(self) -> list[str]:
        """Metrics that the study optimizes, the ranking metric first."""
        return [name for name in self.summary.get("objectives") or [self.metric] if name in self.board]


def read_study(run: Location) -> StudyTables:
    """Read a study's folder. Raises UserError with the file and the missing columns or keys."""
    summary = read_json(run / "study.json")
    required = ("name", "metric", "dataset", "trials", "stopped_early", "epochs_run")
    if missing := [key for key in required if key not in summary]:
        raise UserError(f"{run / 'study.json'}: missing {', '.join(missing)}; run the study again")
    metric = summary["metric"]
    board, history = read_csv(run / "leaderboard.csv"), read_csv(run / "history.csv")
    for name, table, columns in (
        ("leaderboard.csv", board, ("trial", "status", metric)),
        ("history.csv", history, ("trial", "epoch", metric)),
    ):
        if missing := [column for column in columns if column not in table]:
            raise UserError(f"{run / name}: missing column {', '.join(missing)}; run the study again")
        # A table without rows has no dtypes.
        table[metric] = pd.to_numeric(table[metric], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
    keys = summary.get("parameters")
    if keys is None:
        keys = [name for name in board.columns if "." in name or name in LEGACY_SEARCHED_KEYS]
    return StudyTables(
        summary=summary,
        board=board,
        history=history,
        metric=metric,
        mode=summary.get("mode") or ("min" if metric.endswith("loss") else "max"),
        keys=[key for key in keys if key in board],
    )


def read_csv(path: Location) -> pd.DataFrame:
    """Read a CSV file of a study or run. Raises UserError if it is missing or not valid CSV."""
    try:
        return pd.read_csv(io.StringIO(path.read_text()), dtype={"trial": str, "name": str})
    except NotFound:
        raise UserError(f"{path}: file not found; check that the run is complete") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, Damaged) as error:
        raise UserError(f"{path}: not a valid CSV table ({error}); run the study again") from None


def read_parquet(path: Location, columns: Sequence[str], hint: str) -> pa.Table:
    """Read columns of a Parquet file. Raises UserError with the file, the problem, and `hint`: how to fix it."""
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())}); {hint}") from None
    if missing := [column for column in columns if column not in table.column_names]:
        raise UserError(f"{path}: missing column {', '.join(missing)}; {hint}")
    return table.select(list(columns))


def require_columns(path: Location, table: pd.DataFrame, columns: Sequence[str], hint: str) -> pd.DataFrame:
    """Return a table that has these columns. Raises UserError with the file and the missing columns."""
    if missing := [column for column in columns if column not in table]:
        raise UserError(f"{path}: missing column {', '.join(missing)}; {hint}")
    return table


def read_json(path: Location) -> dict[str, Any]:
    """Read a JSON file of a study or run. Raises UserError if it is not a JSON object."""
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, Damaged) as error:
        raise UserError(f"{path}: not valid JSON ({error}); run the study again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; run the study again")
    return values


def require_numbers(path: Location, values: Mapping[str, Any], keys: Sequence[str], hint: str) -> None:
    """Check that a JSON file has these keys, each a number.

    Raises UserError with the file and the first invalid key.
    """
    if missing := [key for key in keys if key not in values]:
        raise UserError(f"{path}: missing {', '.join(missing)}; {hint}")
    for key in keys:
        if isinstance(values[key], bool) or not isinstance(values[key], int | float):
            raise UserError(f"{path}: {key} is {values[key]!r}, expected a number; {hint}")


def model_summary(leaderboard: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return the "Model Summary" table: one row per model with its test top-1/5/10, then the baselines.

    Columns: model, optimizer, epochs, data, val_top1, test_top1, test_top5, test_top10. Models that were not evaluated
    on the test split have no test values. Failed trials are omitted. `data` is empty if all trials use the study's
    dataset.
    """
    completed = leaderboard[~leaderboard["status"].isin((FAILED, NOT_STARTED))]
    rows = pd.DataFrame(
        {
            "model": completed["model.backbone"],
            "optimizer": completed["optimizer.name"],
            "epochs": completed["epochs_run"].astype("Int64"),
            "data": completed["dataset"].fillna("") if "dataset" in completed else "",
            "val_top1": completed["val_top1"].astype(float),
            **{f"test_top{k}": completed[f"test_top{k}"].astype(float) for k in TOPK},
        }
    )
    baseline_rows = [
        {"model": f"({kind} baseline)", **{f"test_top{k}": values.get(str(k)) for k in TOPK}}
        for kind, values in baselines.items()
    ]
    return pd.concat([rows, pd.DataFrame(baseline_rows, columns=rows.columns).astype(rows.dtypes.to_dict())])


def optimizer_epochs(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Return the "optimizer/epochs" table: the best trial per backbone, optimizer, number of epochs and dataset.

    Columns: model, optimizer/epochs, top1, top5, top10 on the test split, and val_top1. The rows of a model are
    adjacent and ordered by epochs, to compare 10 and 30 epochs. A dataset other than the study's own is appended:
    adam/20 cleaned.
    """
    summary = model_summary(leaderboard, {}).sort_values("val_top1", ascending=False)
    key = ["model", "optimizer", "epochs", "data"]
    best = summary.drop_duplicates(key).sort_values(key)
    label = best["optimizer"] + "/" + best["epochs"].astype(str) + " " + best["data"]
    return pd.DataFrame(
        {
            "model": best["model"],
            "optimizer/epochs": label.str.strip(),
            **{f"top{k}": best[f"test_top{k}"] for k in TOPK},
            "val_top1": best["val_top1"],
        }
    )


def write_table(folder: Location, name: str, table: pd.DataFrame) -> None:
    """Write a table as CSV and as JSON (list of rows)."""
    (folder / f"{name}.csv").write_text(table.to_csv(index=False, float_format="%.6g"))
    (folder / f"{name}.json").write_text(table.to_json(orient="records", indent=1) + "\n")


def as_text(table: pd.DataFrame, fractions: Sequence[str]) -> str:
    """Return a table as aligned text. Columns in `fractions` become percentages. Columns without values are omitted."""
    filled = table.dropna(axis=1, how="all").convert_dtypes()
    shown = filled.astype(object)
    for column in (name for name in fractions if name in filled):
        shown[column] = ["" if pd.isna(value) else f"{value:.2%}" for value in filled[column]]
    return shown.where(shown.notna(), "").to_string(index=False)


def metric_label(metric: str) -> str:
    """Return a metric's display name."""
    return METRIC_NAMES.get(metric, metric)


def shown_metric(metric: str, value: float) -> str:
    """Return a metric's value as text: fractions as percentages, parameters in millions."""
    if metric == "parameters":
        return f"{value / 1e6:.3g} M"
    if metric == "images_per_s" or metric.endswith("loss"):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1%}"
