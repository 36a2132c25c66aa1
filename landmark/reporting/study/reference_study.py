"""The project's reference study: its summary table next to the trials of a study."""

import pandas as pd

from landmark.config import UserError
from landmark.config.renamed import VALUES
from landmark.reporting.tables import FAILED, NOT_STARTED, StudyTables

SMALL = "small"
"""The reference study's name for its default dataset: the subset of 100 classes."""
COLUMNS = ("val_top1", "test_top1", "test_top5", "test_top10")
"""Metrics that the reference study reports per model. Its first model has no test metrics."""
ROWS: tuple[tuple[str, str, int, str, float | None, float | None, float | None, float | None], ...] = (
    ("resnet50", "sgd", 10, "large", 16.8, None, None, None),
    ("resnet50", "sgd", 10, SMALL, 17.8, 16.34, 33.45, 45.40),
    ("resnet101", "sgd", 10, SMALL, 22.0, 17.98, 33.68, 46.16),
    ("inception_v3", "sgd", 10, SMALL, 13.0, 10.60, 20.74, 29.53),
    ("inception_v3", "rmsprop", 10, SMALL, 27.8, 29.23, 54.48, 69.83),
    ("inception_v3", "adam", 10, SMALL, 29.9, 28.06, 57.23, 69.83),
    ("resnet101", "rmsprop", 10, SMALL, 37.6, 35.26, 64.56, 76.92),
    ("resnet101", "rmsprop", 20, SMALL, 40.1, 39.72, 67.84, 79.44),
    ("resnet101", "adam", 20, SMALL, 38.3, 40.25, 68.07, 79.44),
    ("resnet101", "adam", 20, "cleaned", 35.0, 38.25, 68.84, 79.50),
    ("resnet101", "sgd", 30, "cleaned", 29.6, 27.30, 54.19, 66.20),
    ("resnet101", "sgd", 100, "cleaned", 35.1, 33.86, 60.98, 74.17),
)
"""Backbone, optimizer, number of epochs, dataset, then COLUMNS in percent, in the order of the reference table."""
BASELINES = {"majority": (None, 4.73, 15.10, 23.73), "random": (None, 1.01, None, None)}
"""Trivial baselines of the reference study on 100 classes, COLUMNS in percent."""
KEY = ["model", "optimizer", "epochs", "data"]


def reference_summary(study: StudyTables) -> pd.DataFrame:
    """Return the reference summary with a study's metrics next to it, followed by the baselines.

    Columns: model, optimizer, epochs, data; `reference_…` and `study_…` for each of COLUMNS (fractions, NaN if
    missing); trial (None if no trial of the study matches). A trial matches if backbone, optimizer, number of epochs
    and dataset are equal. Datasets are named `large` and `cleaned`; the study's own dataset is `small`. If several
    trials match, the best one is used. Raises UserError if no trial matches.
    """
    trials = _trials(study)
    rows = pd.DataFrame(
        [(*row[:4], *(_fraction(value) for value in row[4:])) for row in ROWS],
        columns=[*KEY, *(f"reference_{name}" for name in COLUMNS)],
    )
    table = rows.merge(trials, on=KEY, how="left")
    if not table["trial"].notna().any():
        raise UserError(
            f"study {study.summary['name']}: no trial matches the reference study's twelve models (backbone, "
            "optimizer, epochs, dataset); run `landmark tune --space reference`"
        )
    baselines = study.summary.get("baselines") or {}
    baseline_rows = [
        {"model": f"({kind} baseline)"}
        | {f"reference_{name}": _fraction(value) for name, value in zip(COLUMNS, values, strict=True)}
        | {f"study_test_top{k}": baselines.get(kind, {}).get(str(k)) for k in (1, 5, 10)}
        for kind, values in BASELINES.items()
    ]
    table = pd.concat([table, pd.DataFrame(baseline_rows)], ignore_index=True)
    table["epochs"] = table["epochs"].astype("Int64")
    pairs = [f"{source}_{name}" for name in COLUMNS for source in ("reference", "study")]
    return table[[*KEY, *pairs, "trial"]].astype(dict.fromkeys(pairs, float))


def reference_text(table: pd.DataFrame) -> str:
    """Return the summary as text: percentages, reference next to study, `-` if missing."""
    header = {name: name.replace("_", " ").replace("top", "top-") for name in COLUMNS}
    shown = {key: ["" if pd.isna(value) else str(value) for value in table[key]] for key in KEY}
    for name in COLUMNS:
        for source in ("reference", "study"):
            values = ["-" if pd.isna(value) else f"{value:.2%}" for value in table[f"{source}_{name}"]]
            shown[f"{header[name]} {source}"] = values
    matched = int(table["trial"].notna().sum())
    summary = f"This study contains {matched} of the reference study's {len(ROWS)} models."
    return f"{pd.DataFrame(shown).to_string(index=False)}\n{summary}"


def _trials(study: StudyTables) -> pd.DataFrame:
    """Return the study's trials with the column names of the reference table, only the best trial per model."""
    board = study.board[~study.board["status"].isin((FAILED, NOT_STARTED))]
    if missing := [name for name in ("model.backbone", "optimizer.name", "epochs") if name not in board]:
        raise UserError(f"study {study.summary['name']}: the leaderboard is missing the column {', '.join(missing)}")
    datasets = pd.Series(SMALL, index=board.index) if "dataset" not in board else board["dataset"].fillna(SMALL)
    trials = pd.DataFrame(
        {
            "model": board["model.backbone"].replace(VALUES["backbone"]),
            "optimizer": board["optimizer.name"],
            "epochs": pd.to_numeric(board["epochs"], errors="coerce").astype("Int64"),
            "data": datasets.astype(str),
            "trial": board["trial"],
        }
    )
    for name in COLUMNS:
        values = board[name] if name in board else float("nan")
        trials[f"study_{name}"] = pd.to_numeric(pd.Series(values, index=board.index), errors="coerce")
    return trials.sort_values("study_val_top1", ascending=False).drop_duplicates(KEY)


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 6)
