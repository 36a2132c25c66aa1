"""The deck that this project began with: its summary table, and a study's trials beside it."""

import pandas as pd

from landmark.config import UserError
from landmark.reporting.tables import FAILED, NOT_STARTED, StudyTables

SMALL = "small"
"""The deck's name for the study's own dataset: the subset of 100 classes."""
COLUMNS = ("val_top1", "test_top1", "test_top5", "test_top10")
"""What the deck tells of a model; the test split's shares are missing for its first one."""
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
"""Network, optimizer, epochs asked for, dataset, then COLUMNS in percent, as the deck tables them."""
BASELINES = {"majority": (None, 4.73, 15.10, 23.73), "random": (None, 1.01, None, None)}
"""Trivial baselines of the deck on 100 classes, COLUMNS in percent."""
KEY = ["model", "optimizer", "epochs", "data"]


def deck_summary(study: StudyTables) -> pd.DataFrame:
    """Return the deck's summary with a study's numbers beside it, row for row, then the baselines.

    Columns: model, optimizer, epochs, data; for each of COLUMNS `deck_…` and `ours_…`, shares, NaN where the deck or the
    study has none; trial, None where no trial of the study is the row's counterpart. That is the trial of the same
    network, optimizer, epochs asked for and dataset (by the names `large` and `cleaned`; the study's own is `small`),
    and of several the best. Raises UserError where the study has no counterpart at all.
    """
    ours = _trials(study)
    rows = pd.DataFrame(
        [(*row[:4], *(_share(value) for value in row[4:])) for row in ROWS],
        columns=[*KEY, *(f"deck_{name}" for name in COLUMNS)],
    )
    table = rows.merge(ours, on=KEY, how="left")
    if not table["trial"].notna().any():
        raise UserError(
            f"study {study.summary['name']}: none of its trials is one of the deck's twelve (network, optimizer, epochs, "
            "dataset); run `landmark tune --space deck`"
        )
    known = study.summary.get("baselines") or {}
    trivial = [
        {"model": f"({kind} baseline)"}
        | {f"deck_{name}": _share(value) for name, value in zip(COLUMNS, values, strict=True)}
        | {f"ours_test_top{k}": known.get(kind, {}).get(str(k)) for k in (1, 5, 10)}
        for kind, values in BASELINES.items()
    ]
    table = pd.concat([table, pd.DataFrame(trivial)], ignore_index=True)
    table["epochs"] = table["epochs"].astype("Int64")
    pairs = [f"{who}_{name}" for name in COLUMNS for who in ("deck", "ours")]
    return table[[*KEY, *pairs, "trial"]].astype(dict.fromkeys(pairs, float))


def deck_text(table: pd.DataFrame) -> str:
    """Return the summary for reading: percentages, the deck's beside ours, - where one has none."""
    header = {name: name.replace("_", " ").replace("top", "top-") for name in COLUMNS}
    shown = {key: ["" if pd.isna(value) else str(value) for value in table[key]] for key in KEY}
    for name in COLUMNS:
        for who in ("deck", "ours"):
            values = ["-" if pd.isna(value) else f"{value:.2%}" for value in table[f"{who}_{name}"]]
            shown[f"{header[name]} {who}"] = values
    found, rows = int(table["trial"].notna().sum()), len(ROWS)
    return f"{pd.DataFrame(shown).to_string(index=False)}\n{found} of the deck's {rows} models are in this study"


def _trials(study: StudyTables) -> pd.DataFrame:
    """Return the study's trials as the deck's rows are named, the best of each."""
    board = study.board[~study.board["status"].isin((FAILED, NOT_STARTED))]
    if missing := [name for name in ("model.backbone", "optimizer.name", "epochs") if name not in board]:
        raise UserError(f"study {study.summary['name']}: its leaderboard has no column {', '.join(missing)}")
    named = pd.Series(SMALL, index=board.index) if "dataset" not in board else board["dataset"].fillna(SMALL)
    trials = pd.DataFrame(
        {
            "model": board["model.backbone"],
            "optimizer": board["optimizer.name"],
            "epochs": pd.to_numeric(board["epochs"], errors="coerce").astype("Int64"),
            "data": named.astype(str),
            "trial": board["trial"],
        }
    )
    for name in COLUMNS:
        values = board[name] if name in board else float("nan")
        trials[f"ours_{name}"] = pd.to_numeric(pd.Series(values, index=board.index), errors="coerce")
    return trials.sort_values("ours_val_top1", ascending=False).drop_duplicates(KEY)


def _share(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 6)
