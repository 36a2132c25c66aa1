"""Tables of a study: what its folder holds, the deck's model summary and its optimizer x epochs table."""

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
"""How a trial ended."""
METRIC_NAMES = {
    "val_top1": "validation top-1",
    "val_top5": "validation top-5",
    "val_macro_recall": "validation macro recall",
    "val_loss": "validation loss",
    "train_top1": "training top-1",
    "train_loss": "training loss",
    "images_per_s": "images a second in training",
    "parameters": "weights of the model",
}
"""Metrics in words."""
SEARCHED_OF_OLD = ("dataset", "epochs")
"""Searched keys without a dot, looked for in studies that do not say what they searched."""


@dataclass(kw_only=True, frozen=True)
class StudyTables:
    """A study as its folder has it."""

    summary: dict[str, Any]
    """study.json."""
    board: pd.DataFrame
    """leaderboard.csv: a row a trial, best first."""
    history: pd.DataFrame
    """history.csv: a row a trial and epoch."""
    metric: str
    """By which trials are compared; a column of both tables, float, NaN where there is none."""
    mode: str
    """max or min: whether the metric is better when greater or when smaller."""
    keys: list[str]
    """Searched keys that are columns of the leaderboard."""

    @property
    def results(self) -> pd.DataFrame:
        """Rows of the leaderboard of the trials that did not fail and have a metric."""
        return self.board[~self.board["status"].isin((FAILED, NOT_STARTED)) & self.board[self.metric].notna()]

    @property
    def objectives(self) -> list[str]:
        """Metrics that were searched for together, the study's first; one where the study had no others."""
        return [name for name in self.summary.get("objectives") or [self.metric] if name in self.board]


def read_study(run: Location) -> StudyTables:
    """Read a study's folder; raises UserError that names the file and what it lacks."""
    summary = read_json(run / "study.json")
    needed = ("name", "metric", "dataset", "trials", "stopped_early", "epochs_run")
    if missing := [key for key in needed if key not in summary]:
        raise UserError(f"{run / 'study.json'}: no {', '.join(missing)}; run the study again")
    metric = summary["metric"]
    board, history = read_csv(run / "leaderboard.csv"), read_csv(run / "history.csv")
    for name, table, columns in (
        ("leaderboard.csv", board, ("trial", "status", metric)),
        ("history.csv", history, ("trial", "epoch", metric)),
    ):
        if missing := [column for column in columns if column not in table]:
            raise UserError(f"{run / name}: no column {', '.join(missing)}; run the study again")
        # A table without rows has no types.
        table[metric] = pd.to_numeric(table[metric], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
    listed = summary.get("parameters")
    if listed is None:
        listed = [name for name in board.columns if "." in name or name in SEARCHED_OF_OLD]
    return StudyTables(
        summary=summary,
        board=board,
        history=history,
        metric=metric,
        mode=summary.get("mode") or ("min" if metric.endswith("loss") else "max"),
        keys=[key for key in listed if key in board],
    )


def read_csv(place: Location) -> pd.DataFrame:
    """Read a CSV file of a study or run; raises UserError where it is missing or no CSV."""
    try:
        return pd.read_csv(io.StringIO(place.read_text()), dtype={"trial": str, "name": str})
    except NotFound:
        raise UserError(f"{place}: not there; has the run come to its end?") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, Damaged) as error:
        raise UserError(f"{place}: not a table ({error}); run the study again") from None


def read_parquet(place: Location, columns: Sequence[str], again: str) -> pa.Table:
    """Read columns of a Parquet file; raises UserError that names the file, what it lacks, and `again`: what to run."""
    try:
        table = pq.read_table(pa.BufferReader(place.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place}: not a readable Parquet file ({' '.join(str(error).split())}); {again}") from None
    if missing := [column for column in columns if column not in table.column_names]:
        raise UserError(f"{place}: no column {', '.join(missing)}; {again}")
    return table.select(list(columns))


def require_columns(place: Location, table: pd.DataFrame, columns: Sequence[str], again: str) -> pd.DataFrame:
    """Return a table that has these columns; raises UserError that names the file and what it lacks."""
    if missing := [column for column in columns if column not in table]:
        raise UserError(f"{place}: no column {', '.join(missing)}; {again}")
    return table


def read_json(place: Location) -> dict[str, Any]:
    """Read a JSON file of a study or run; raises UserError where it is no JSON object."""
    try:
        values = json.loads(place.read_text())
    except (json.JSONDecodeError, Damaged) as error:
        raise UserError(f"{place}: not JSON ({error}); run the study again") from None
    if not isinstance(values, dict):
        raise UserError(f"{place}: not a JSON object; run the study again")
    return values


def require_numbers(place: Location, values: Mapping[str, Any], keys: Sequence[str], again: str) -> None:
    """Check that a JSON file has these keys, each a number; raises UserError that names the file and the first one amiss."""
    if missing := [key for key in keys if key not in values]:
        raise UserError(f"{place}: no {', '.join(missing)}; {again}")
    for key in keys:
        if isinstance(values[key], bool) or not isinstance(values[key], int | float):
            raise UserError(f"{place}: {key} is {values[key]!r}, expected a number; {again}")


def model_summary(leaderboard: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return the deck's "Model Summary": a row a model with its test top-1/5/10, then the baselines.

    Columns: model, optimizer, epochs, data, val_top1, test_top1, test_top5, test_top10. Trials whose model was
    not evaluated on the test split have no value there; failed ones are left out. `data` is empty where all trials
    have the study's dataset.
    """
    done = leaderboard[~leaderboard["status"].isin((FAILED, NOT_STARTED))]
    rows = pd.DataFrame(
        {
            "model": done["model.backbone"],
            "optimizer": done["optimizer.name"],
            "epochs": done["epochs_run"].astype("Int64"),
            "data": done["dataset"].fillna("") if "dataset" in done else "",
            "val_top1": done["val_top1"].astype(float),
            **{f"test_top{k}": done[f"test_top{k}"].astype(float) for k in TOPK},
        }
    )
    trivial = [
        {"model": f"({kind} baseline)", **{f"test_top{k}": values.get(str(k)) for k in TOPK}}
        for kind, values in baselines.items()
    ]
    return pd.concat([rows, pd.DataFrame(trivial, columns=rows.columns).astype(rows.dtypes.to_dict())])


def optimizer_epochs(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """Return the deck's "optimizer/epochs" table: of each backbone, optimizer, number of epochs and dataset the best trial.

    Columns: model, optimizer/epochs, top1, top5, top10 on the test split, and val_top1. Rows of one model
    stand together in order of the epochs, so that 10 and 30 epochs can be compared side by side; a dataset other
    than the study's is named as the deck does it: adam/20 cleaned.
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
    """Write a table as CSV and as JSON (a list of rows)."""
    (folder / f"{name}.csv").write_text(table.to_csv(index=False, float_format="%.6g"))
    (folder / f"{name}.json").write_text(table.to_json(orient="records", indent=1) + "\n")


def as_text(table: pd.DataFrame, shares: Sequence[str]) -> str:
    """Return a table aligned for reading; columns in `shares` as percentages, those without any value left out."""
    filled = table.dropna(axis=1, how="all").convert_dtypes()
    shown = filled.astype(object)
    for column in (name for name in shares if name in filled):
        shown[column] = ["" if pd.isna(value) else f"{value:.2%}" for value in filled[column]]
    return shown.where(shown.notna(), "").to_string(index=False)


def named(metric: str) -> str:
    """Return a metric in words."""
    return METRIC_NAMES.get(metric, metric)


def shown_metric(metric: str, value: float) -> str:
    """Return a metric's value for reading: shares as percentages, weights in millions."""
    if metric == "parameters":
        return f"{value / 1e6:.3g} M"
    if metric == "images_per_s" or metric.endswith("loss"):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1%}"
