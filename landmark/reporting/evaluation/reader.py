"""Read an evaluation folder, validate its files and convert them to tables."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from landmark.config import UserError
from landmark.reporting.tables import read_csv, read_json, read_parquet, require_columns, require_numbers
from landmark.storage import Location

SPLITS = ("test", "val", "train")
"""Splits in order of preference. The first one that was evaluated is shown."""
HINT = "evaluate the model again"
"""Suggested fix in error messages."""
EXAMPLE_COLUMNS = ("kind", "image_id", "label", "predicted", "score", "thumbnail")
METRIC_NAMES = {
    "gap": "GAP",
    "macro_recall": "macro recall",
    "macro_precision": "macro precision",
    "ece": "calibration error (ECE)",
    "rejection_auroc": "rejection (AUROC)",
}
"""Display names of the metrics other than top-k accuracies."""
REQUIRED = ("rows", "classes", "top1", "macro_recall", "classes_present")
DIFFERENCE_COLUMNS = ("a", "b", "difference", "low", "high")


@dataclass(kw_only=True)
class EvaluationTables:
    """Contents of an evaluation folder. The table of a missing file is empty."""

    folder: Location
    metrics: dict[str, Any]
    """metrics.json."""
    classes: pd.DataFrame
    """One row per class: label, name, train_images, images, recall, precision, and band if known."""
    confusion: pd.DataFrame
    """Nonzero cells: true, predicted, count."""
    calibration: pd.DataFrame = field(default_factory=pd.DataFrame)
    bands: pd.DataFrame = field(default_factory=pd.DataFrame)
    examples: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Example images: EXAMPLE_COLUMNS."""
    comparison: dict[str, Any] = field(default_factory=dict)
    """comparison.json."""
    compared_classes: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def names(self) -> list[str]:
        """Class names, by label."""
        return self.classes["name"].tolist()

    def name(self, label: int) -> str:
        """Return a class name, or a description of the label if there is no such class."""
        if label < 0:
            return "no landmark"
        return str(self.classes["name"].iat[label]) if label < len(self.classes) else f"label {label}"


def read_evaluation(run: Location) -> EvaluationTables | None:
    """Read the evaluation of a run or study, None if there is none. Raises UserError if a file is corrupt."""
    folders = (run / f"evaluation-{split}" for split in SPLITS)
    folder = next((folder for folder in folders if (folder / "metrics.json").exists()), None)
    if folder is None:
        return None
    metrics = read_json(folder / "metrics.json")
    _check_metrics(folder / "metrics.json", metrics)
    evaluation = EvaluationTables(
        folder=folder, metrics=metrics, classes=_classes(folder), confusion=_confusion(folder)
    )
    if (folder / "calibration.csv").exists():
        evaluation.calibration = _table(folder / "calibration.csv", ("low", "high", "rows", "confidence", "accuracy"))
    if metrics.get("bands"):
        evaluation.bands = pd.DataFrame(metrics["bands"])
        columns = ("band", "classes", "top1", "macro_recall")
        require_columns(folder / "metrics.json", evaluation.bands, columns, HINT)
        for name in ("top1", "macro_recall"):
            evaluation.bands[name] = pd.to_numeric(evaluation.bands[name], errors="coerce")
        _add_knn_metrics(evaluation.bands, (_knn_metrics(metrics) or {}).get("bands"))
    if (folder / "examples.parquet").exists():
        examples = read_parquet(folder / "examples.parquet", EXAMPLE_COLUMNS, HINT).to_pandas()
        evaluation.examples = examples[examples["thumbnail"].notna()]
    if (folder / "comparison.json").exists():
        evaluation.comparison = read_json(folder / "comparison.json")
        for values in _objects(folder / "comparison.json", evaluation.comparison, "difference"):
            require_numbers(folder / "comparison.json", values, DIFFERENCE_COLUMNS, HINT)
        if (folder / "comparison_classes.csv").exists():
            columns = ("name", "images", "only_a", "only_b")
            evaluation.compared_classes = _table(folder / "comparison_classes.csv", columns)
    return evaluation


def metrics_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """Return the metrics as a table: metric, model, 95% interval, and k-NN and baselines if available."""
    top_k = [key for key in metrics if key.startswith("top") and key[3:].isdigit()]
    keys = [*top_k, *(key for key in METRIC_NAMES if metrics.get(key) is not None)]
    intervals = metrics.get("intervals") or {}
    rows = []
    for key in keys:
        low_high = intervals.get(key)
        rows.append(
            {
                "metric": METRIC_NAMES.get(key) or f"top-{key[3:]}",
                "model": metrics[key],
                "95% interval": f"{low_high[0]:.2%} – {low_high[1]:.2%}" if low_high else None,
                "k-NN": (_knn_metrics(metrics) or {}).get(key),
                "majority baseline": metrics.get(f"majority_{key}"),
                "random baseline": metrics.get(f"random_{key}"),
            }
        )
    table = pd.DataFrame(rows)
    return table.dropna(axis=1, how="all") if len(table) else table


def confused_pairs(evaluation: EvaluationTables) -> pd.DataFrame:
    """Return the errors by pair of classes, the most frequent first.

    Columns: true, predicted (labels), count, fraction (fraction of the true class's images).
    """
    cells = evaluation.confusion
    support = cells.groupby("true")["count"].sum()
    wrong = cells[(cells["true"] != cells["predicted"]) & (cells["true"] >= 0)]
    wrong = wrong.assign(fraction=wrong["count"] / wrong["true"].map(support))
    return wrong.sort_values(["count", "fraction"], ascending=False, kind="stable", ignore_index=True)


def _check_metrics(path: Location, metrics: dict[str, Any]) -> None:
    """Raise UserError if the metrics do not have the format that `landmark evaluate` writes."""
    require_numbers(path, metrics, [*REQUIRED, *(key for key in METRIC_NAMES if metrics.get(key) is not None)], HINT)
    if "split" not in metrics:
        raise UserError(f"{path}: missing split; {HINT}")
    for key, pair in (metrics.get("intervals") or {}).items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{path}: the interval of {key} is {pair!r}, expected two numbers; {HINT}")
        require_numbers(path, dict(zip(("low", "high"), pair, strict=True)), ("low", "high"), HINT)
    if not all(isinstance(band, dict) for band in metrics.get("bands") or []):
        raise UserError(f"{path}: bands must be a list of objects; {HINT}")
    if metrics.get("loss") is not None:
        require_numbers(path, metrics, ("loss",), HINT)
    if (bootstrap := metrics.get("bootstrap")) is not None:
        if not isinstance(bootstrap, dict):
            raise UserError(f"{path}: bootstrap must be an object; {HINT}")
        require_numbers(path, bootstrap, ("samples", *(key for key in ("groups",) if key in bootstrap)), HINT)
    knn = _knn_metrics(metrics)
    if knn is not None:
        if not isinstance(knn, dict) or not all(isinstance(band, dict) for band in knn.get("bands") or []):
            raise UserError(f"{path}: knn must be an object of metrics; {HINT}")
        require_numbers(path, knn, [key for key in ("top1", *METRIC_NAMES) if knn.get(key) is not None], HINT)


def _knn_metrics(metrics: dict[str, Any]) -> Any:
    """Return the k-NN metrics. Earlier versions stored them as `neighbours`."""
    return metrics.get("knn", metrics.get("neighbours"))


def _add_knn_metrics(bands: pd.DataFrame, knn_bands: list[dict[str, Any]] | None) -> None:
    """Add the k-NN metrics of each band next to the model's."""
    by_band = {band.get("band"): band for band in knn_bands or []}
    for name in ("top1", "macro_recall") if by_band else ():
        values = [by_band.get(band, {}).get(name) for band in bands["band"]]
        position = list(bands.columns).index("macro_recall") + 1 + (name == "macro_recall")
        bands.insert(position, f"knn_{name}", pd.to_numeric(pd.Series(values), errors="coerce"))


def _objects(path: Location, values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the objects of a key of a JSON file, or an empty list if the key is missing."""
    found = values.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise UserError(f"{path}: {key} must be an object of objects; {HINT}")
    return list(found.values())


def _classes(folder: Location) -> pd.DataFrame:
    columns = ("label", "name", "train_images", "images", "recall", "precision")
    if (folder / "per_class.parquet").exists():
        path = folder / "per_class.parquet"
        table = read_parquet(path, columns, HINT).to_pandas()
    elif (folder / "per_class.csv").exists():
        path = folder / "per_class.csv"
        table = _table(path, columns)
    else:
        return pd.DataFrame(columns=list(columns))
    if not np.array_equal(table["label"].to_numpy(), np.arange(len(table))):
        raise UserError(f"{path}: labels must be 0, 1, 2, … in order; {HINT}")
    table["name"] = table["name"].fillna("").astype(str)
    return table


def _confusion(folder: Location) -> pd.DataFrame:
    path, columns = folder / "confusion.csv", ("true", "predicted", "count")
    if not path.exists():
        return pd.DataFrame(columns=list(columns), dtype=np.int64)
    table = _table(path, columns)[list(columns)]
    if len(table) and not all(pd.api.types.is_integer_dtype(table[column]) for column in columns):
        raise UserError(f"{path}: expected integers in {', '.join(columns)}; {HINT}")
    return table


def _table(path: Location, columns: tuple[str, ...]) -> pd.DataFrame:
    return require_columns(path, read_csv(path), columns, HINT)
