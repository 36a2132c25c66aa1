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
AGAIN = "evaluate the model again"
EXAMPLE_COLUMNS = ("kind", "image_id", "label", "predicted", "score", "thumbnail")
MEASURES = {
    "gap": "GAP",
    "macro_recall": "macro recall",
    "macro_precision": "macro precision",
    "ece": "calibration error (ECE)",
    "rejection_auroc": "rejection (AUROC)",
}
"""Display names of the metrics other than top-k accuracies."""
NEEDED = ("rows", "classes", "top1", "macro_recall", "classes_present")
DIFFERENCE = ("a", "b", "difference", "low", "high")


@dataclass(kw_only=True)
class Evaluated:
    """Contents of an evaluation folder. Tables of missing files are empty."""

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


def read_evaluation(run: Location) -> Evaluated | None:
    """Read the evaluation of a run or study, None if there is none. Raises UserError if a file is corrupt."""
    folders = (run / f"evaluation-{split}" for split in SPLITS)
    folder = next((folder for folder in folders if (folder / "metrics.json").exists()), None)
    if folder is None:
        return None
    metrics = read_json(folder / "metrics.json")
    _check_metrics(folder / "metrics.json", metrics)
    found = Evaluated(folder=folder, metrics=metrics, classes=_classes(folder), confusion=_confusion(folder))
    if (folder / "calibration.csv").exists():
        found.calibration = _table(folder / "calibration.csv", ("low", "high", "rows", "confidence", "accuracy"))
    if metrics.get("bands"):
        found.bands = pd.DataFrame(metrics["bands"])
        columns = ("band", "classes", "top1", "macro_recall")
        require_columns(folder / "metrics.json", found.bands, columns, AGAIN)
        for name in ("top1", "macro_recall"):
            found.bands[name] = pd.to_numeric(found.bands[name], errors="coerce")
        _add_neighbours(found.bands, metrics.get("neighbours", {}).get("bands"))
    if (folder / "examples.parquet").exists():
        examples = read_parquet(folder / "examples.parquet", EXAMPLE_COLUMNS, AGAIN).to_pandas()
        found.examples = examples[examples["thumbnail"].notna()]
    if (folder / "comparison.json").exists():
        found.comparison = read_json(folder / "comparison.json")
        for values in _objects(folder / "comparison.json", found.comparison, "difference"):
            require_numbers(folder / "comparison.json", values, DIFFERENCE, AGAIN)
        if (folder / "comparison_classes.csv").exists():
            needed = ("name", "images", "only_a", "only_b")
            found.compared_classes = _table(folder / "comparison_classes.csv", needed)
    return found


def measures_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """Return the metrics as a table: metric, model, its 95% interval, then k-NN and baselines if available."""
    shares = [key for key in metrics if key.startswith("top") and key[3:].isdigit()]
    keys = [*shares, *(key for key in MEASURES if metrics.get(key) is not None)]
    intervals = metrics.get("intervals") or {}
    rows = []
    for key in keys:
        low_high = intervals.get(key)
        rows.append(
            {
                "metric": MEASURES.get(key) or f"top-{key[3:]}",
                "model": metrics[key],
                "95 % interval": f"{low_high[0]:.2%} – {low_high[1]:.2%}" if low_high else None,
                "neighbours": (metrics.get("neighbours") or {}).get(key),
                "majority baseline": metrics.get(f"majority_{key}"),
                "random baseline": metrics.get(f"random_{key}"),
            }
        )
    table = pd.DataFrame(rows)
    return table.dropna(axis=1, how="all") if len(table) else table


def confused_pairs(evaluated: Evaluated) -> pd.DataFrame:
    """Return the errors by pair of classes, the most frequent first.

    Columns: true, predicted (labels), count, share (fraction of the true class's images).
    """
    cells = evaluated.confusion
    support = cells.groupby("true")["count"].sum()
    wrong = cells[(cells["true"] != cells["predicted"]) & (cells["true"] >= 0)]
    wrong = wrong.assign(share=wrong["count"] / wrong["true"].map(support))
    return wrong.sort_values(["count", "share"], ascending=False, kind="stable", ignore_index=True)


def _check_metrics(place: Location, metrics: dict[str, Any]) -> None:
    """Raise UserError if the metrics do not have the format that `landmark evaluate` writes."""
    require_numbers(place, metrics, [*NEEDED, *(key for key in MEASURES if metrics.get(key) is not None)], AGAIN)
    if "split" not in metrics:
        raise UserError(f"{place}: missing split; {AGAIN}")
    for key, pair in (metrics.get("intervals") or {}).items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{place}: the interval of {key} is {pair!r}, expected two numbers; {AGAIN}")
        require_numbers(place, dict(zip(("low", "high"), pair, strict=True)), ("low", "high"), AGAIN)
    if not all(isinstance(band, dict) for band in metrics.get("bands") or []):
        raise UserError(f"{place}: bands must be a list of objects; {AGAIN}")
    if metrics.get("loss") is not None:
        require_numbers(place, metrics, ("loss",), AGAIN)
    if (bootstrap := metrics.get("bootstrap")) is not None:
        if not isinstance(bootstrap, dict):
            raise UserError(f"{place}: bootstrap must be an object; {AGAIN}")
        require_numbers(place, bootstrap, ("samples", *(key for key in ("groups",) if key in bootstrap)), AGAIN)
    near = metrics.get("neighbours")
    if near is not None:
        if not isinstance(near, dict) or not all(isinstance(band, dict) for band in near.get("bands") or []):
            raise UserError(f"{place}: neighbours must be an object of metrics; {AGAIN}")
        require_numbers(place, near, [key for key in ("top1", *MEASURES) if near.get(key) is not None], AGAIN)


def _add_neighbours(bands: pd.DataFrame, theirs: list[dict[str, Any]] | None) -> None:
    """Add the k-NN metrics of each band next to the model's."""
    of_band = {band.get("band"): band for band in theirs or []}
    for name in ("top1", "macro_recall") if of_band else ():
        values = [of_band.get(band, {}).get(name) for band in bands["band"]]
        place = list(bands.columns).index("macro_recall") + 1 + (name == "macro_recall")
        bands.insert(place, f"neighbours_{name}", pd.to_numeric(pd.Series(values), errors="coerce"))


def _objects(place: Location, values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the objects of a key of a JSON file, or an empty list if the key is missing."""
    found = values.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise UserError(f"{place}: {key} must be an object of objects; {AGAIN}")
    return list(found.values())


def _classes(folder: Location) -> pd.DataFrame:
    columns = ("label", "name", "train_images", "images", "recall", "precision")
    if (folder / "per_class.parquet").exists():
        place = folder / "per_class.parquet"
        table = read_parquet(place, columns, AGAIN).to_pandas()
    elif (folder / "per_class.csv").exists():
        place = folder / "per_class.csv"
        table = _table(place, columns)
    else:
        return pd.DataFrame(columns=list(columns))
    if not np.array_equal(table["label"].to_numpy(), np.arange(len(table))):
        raise UserError(f"{place}: labels must be 0, 1, 2, … in order; {AGAIN}")
    table["name"] = table["name"].fillna("").astype(str)
    return table


def _confusion(folder: Location) -> pd.DataFrame:
    place, columns = folder / "confusion.csv", ("true", "predicted", "count")
    if not place.exists():
        return pd.DataFrame(columns=list(columns), dtype=np.int64)
    table = _table(place, columns)[list(columns)]
    if len(table) and not all(pd.api.types.is_integer_dtype(table[column]) for column in columns):
        raise UserError(f"{place}: expected integers in {', '.join(columns)}; {AGAIN}")
    return table


def _table(place: Location, columns: tuple[str, ...]) -> pd.DataFrame:
    return require_columns(place, read_csv(place), columns, AGAIN)
