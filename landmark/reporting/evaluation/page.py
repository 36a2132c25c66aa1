"""Page sections for an evaluation: results, bands, calibration, errors and classes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from landmark.reporting.evaluation.charts import bands_svg, reliability_svg
from landmark.reporting.evaluation.classes import MAX_CLASSES, SHOWN_CLASSES, class_columns, extremes, matrix_data
from landmark.reporting.evaluation.reader import EvaluationTables, confused_pairs, metrics_table
from landmark.reporting.page import Gallery, Group, Picture, Section, Widget, html_table, within_budget
from landmark.reporting.plots import classes_figure, svg_text
from landmark.reporting.tables import write_table
from landmark.storage import Location

PHOTOGRAPH_BYTES = 900_000
"""Maximum size of a section's photographs, bytes."""
LISTED_PAIRS = 10_000
"""Maximum rows of confused_pairs.csv. With many classes, nearly every error is a different pair."""
SHOWN_PAIRS = 24
IMAGES_PER_PAIR = 2
SHOWN_ERRORS = 48
FRACTION_COLUMNS = ("model", "majority baseline", "random baseline", "k-NN")
DISPLAY_NAMES = {"95% interval": "95% interval"}
"""Column headings on the page that differ from those in the CSV files."""


def evaluation_groups(evaluation: EvaluationTables, output: Location) -> list[Group]:
    """Return the page's groups for an evaluation and write their tables next to the page."""
    return [
        Group(
            title="Results",
            sections=[
                _metrics(evaluation, output),
                *_bands(evaluation, output),
                *_calibration(evaluation, output),
                *_comparison(evaluation, output),
            ],
        ),
        Group(
            title="Errors",
            sections=[*_matrix(evaluation), *_pairs(evaluation, output), *_confident_errors(evaluation)],
        ),
        Group(
            title="Classes",
            sections=[*_extremes(evaluation, output), *_class_sizes(evaluation), *_all_classes(evaluation)],
        ),
    ]


def _metrics(evaluation: EvaluationTables, output: Location) -> Section:
    metrics = evaluation.metrics
    table = metrics_table(metrics)
    write_table(output, "measures", table)
    distractors = metrics.get("rows_without_landmark")
    speed = metrics.get("inference") or {}
    text = (
        f"{metrics['rows']:,} images of {metrics['classes_present']:,} classes"
        + (f", plus {distractors:,} images without a landmark" if distractors else "")
        + (f"; loss {metrics['loss']:.3f}." if metrics.get("loss") is not None else ".")  # k-NN has no loss
    )
    if bootstrap := metrics.get("bootstrap"):
        unit = f" that sample {bootstrap['groups']:,} complete groups" if "groups" in bootstrap else ""
        text += f" Intervals: {bootstrap['samples']:,} bootstrap replicates{unit}."
    if "images_per_s" in speed:
        text += f" Inference: {speed['images_per_s']:,.0f} images/s on {speed.get('device', 'an unknown device')}."
    return Section(
        title=f"Best model on the {metrics['split']} split",
        text=text,
        table=html_table(table.rename(columns=DISPLAY_NAMES), fractions=FRACTION_COLUMNS),
    )


def _bands(evaluation: EvaluationTables, output: Location) -> list[Section]:
    bands = evaluation.bands
    if not len(bands):
        return []
    write_table(output, "bands", bands)
    names = {"least_train_images": "minimum training images", "most_train_images": "maximum training images"}
    fractions = [name for name in map(str, bands) if name.endswith("macro_recall") or "top" in name]
    names |= {name: _band_heading(name) for name in fractions}
    shown = bands.rename(columns=names)
    description = "; ".join(
        f"{row['band']}: {row['top1']:.1%}" for row in bands.to_dict("records") if pd.notna(row["top1"])
    )
    return [
        Section(
            title="Results by class frequency",
            text="Classes by number of training images: head (many-shot), middle (medium-shot), tail (few-shot).",
            chart=bands_svg(bands, evaluation.metrics["top1"]),
            alt=f"Bar chart of top-1 and macro recall per class-frequency band. Top-1 per band: {description}.",
            table=html_table(shown, [names[name] for name in fractions]),
        )
    ]


def _band_heading(column: str) -> str:
    return re.sub(r"top(\d+)", r"top-\1", column).replace("knn", "k-NN").replace("_", " ")


def _calibration(evaluation: EvaluationTables, output: Location) -> list[Section]:
    bins = evaluation.calibration
    if not len(bins):
        return []
    write_table(output, "calibration", bins)
    rows = bins["rows"].sum()
    confidence = (bins["confidence"].fillna(0) * bins["rows"]).sum() / max(rows, 1)
    accuracy = (bins["accuracy"].fillna(0) * bins["rows"]).sum() / max(rows, 1)
    ece = evaluation.metrics.get("ece")
    verdict = "overconfident" if confidence > accuracy else "underconfident"
    error = f" The expected calibration error is {ece:.2%}." if ece is not None else ""
    text = (
        f"The model is {verdict}: its mean confidence is {confidence:.1%}, and {accuracy:.1%} of its predictions "
        f"are correct.{error}"
    )
    return [
        Section(
            title="Calibration",
            text=text,
            chart=reliability_svg(bins),
            alt=f"Reliability diagram with {len(bins)} confidence bins, and the number of predictions per bin. {text}",
        )
    ]


def _comparison(evaluation: EvaluationTables, output: Location) -> list[Section]:
    comparison = evaluation.comparison
    if not comparison:
        return []
    former = {"both_correct": "both_right", "both_incorrect": "both_wrong"}  # keys of earlier versions
    counts = {
        key: comparison.get(key, comparison.get(former.get(key, ""), 0))
        for key in ("both_correct", "only_a", "only_b", "both_incorrect")
    }
    a, b = comparison.get("a", "A"), comparison.get("b", "B")
    predictions = pd.DataFrame(
        [
            {"model": "A correct", "B correct": counts["both_correct"], "B incorrect": counts["only_a"]},
            {"model": "A incorrect", "B correct": counts["only_b"], "B incorrect": counts["both_incorrect"]},
        ]
    )
    differences = pd.DataFrame(
        [
            {
                "metric": "GAP" if key == "gap" else key.replace("top", "top-"),
                "A": value["a"],
                "B": value["b"],
                "A - B": value["difference"],
                "95% interval": f"{value['low']:+.2%} – {value['high']:+.2%}",
            }
            for key, value in (comparison.get("difference") or {}).items()
        ]
    )
    write_table(output, "comparison", differences)
    p = comparison.get("mcnemar_p")
    test = "" if p is None else f" McNemar's test: p = {p:.3g}."
    tables = [("Predictions for the same images", html_table(predictions))]
    for side, title in (
        ("only_a", "Classes with the most images that only A classifies correctly"),
        ("only_b", "Classes with the most images that only B classifies correctly"),
    ):
        classes = evaluation.compared_classes
        if len(classes) and (classes[side] > 0).any():
            top = classes[classes[side] > 0].sort_values(side, ascending=False, kind="stable").head(10)
            shown = top[["name", "images", "only_a", "only_b"]]
            tables.append((title, html_table(shown.rename(columns={"only_a": "only A", "only_b": "only B"}))))
    return [
        Section(
            title="Comparison with another model",
            text=f"A is {a}, B is {b}, on the same {comparison.get('rows', sum(counts.values())):,} images.{test}",
            table=html_table(differences.rename(columns=DISPLAY_NAMES), ("A", "B", "A - B")),
            extra_tables=tables,
        )
    ]


def _matrix(evaluation: EvaluationTables) -> list[Section]:
    if not len(evaluation.confusion) or not len(evaluation.classes):
        return []
    total = len(evaluation.classes)
    subset = "" if total <= MAX_CLASSES else f"The {SHOWN_CLASSES} of {total:,} classes with the most errors. "
    return [
        Section(
            title="Confusion matrix",
            text=f"{subset}Rows are true classes, columns are predicted classes. The color shows the fraction of the "
            "true class. To zoom, use the mouse wheel, pinch, or press + and -. To pan, drag. To move between cells, "
            "use the arrow keys.",
            widget=Widget(name="matrix", data=matrix_data(evaluation)),
        )
    ]


def _pairs(evaluation: EvaluationTables, output: Location) -> list[Section]:
    pairs = confused_pairs(evaluation)
    if not len(pairs):
        return []
    first = pairs.head(LISTED_PAIRS)
    listed = first.assign(
        **{side: [evaluation.name(label) for label in first[side].tolist()] for side in ("true", "predicted")}
    )
    write_table(output, "confused_pairs", listed)
    shown, names = listed.head(SHOWN_PAIRS), {"fraction": "fraction of true class"}
    galleries = [
        _pair_gallery(evaluation, pair)
        for pair in pairs.head(SHOWN_PAIRS).to_dict("records")
        if len(evaluation.examples)
    ]
    kept, omitted = within_budget([gallery for gallery in galleries if gallery.pictures], PHOTOGRAPH_BYTES)
    return [
        Section(
            title="Most confused pairs",
            text=f"{len(pairs):,} pairs of classes were confused. The table shows the {min(SHOWN_PAIRS, len(pairs))} "
            "most frequent." + (f" {omitted} photographs are omitted." if omitted else ""),
            table=html_table(shown.rename(columns=names), (names["fraction"],)),
            galleries=kept,
        )
    ]


def _pair_gallery(evaluation: EvaluationTables, pair: Mapping[Any, Any]) -> Gallery:
    """Return misclassified photographs of one class, between a typical photograph of each class."""
    examples = evaluation.examples
    true, predicted = int(pair["true"]), int(pair["predicted"])
    names = evaluation.name(true), evaluation.name(predicted)
    wrong = examples[
        (examples["kind"] == "pair") & (examples["label"] == true) & (examples["predicted"] == predicted)
    ].head(IMAGES_PER_PAIR)
    typical = examples[examples["kind"] == "class"]
    pictures = [
        Picture(
            data=row["thumbnail"],
            alt=f"Photograph {row['image_id']}: {names[0]}, predicted as {names[1]}",
            caption=f"{row['image_id']}, {row['score']:.0%} confidence",
            badge="error",
        )
        for row in wrong.to_dict("records")
    ]
    for label, name, badge in ((true, names[0], "true class"), (predicted, names[1], "predicted")):
        for row in typical[typical["label"] == label].head(1).to_dict("records") if pictures else ():
            picture = Picture(data=row["thumbnail"], alt=f"A photograph of {name}", caption=name, badge=badge)
            pictures.insert(0 if label == true else len(pictures), picture)
    title = f"{names[0]} predicted as {names[1]}: {pair['count']:.0f} times, {pair['fraction']:.0%} of the true class's images"
    return Gallery(title=title, pictures=pictures)


def _confident_errors(evaluation: EvaluationTables) -> list[Section]:
    if not len(evaluation.examples):
        return []
    rows = evaluation.examples[evaluation.examples["kind"] == "mistake"].head(SHOWN_ERRORS).to_dict("records")
    singles = []
    for row in rows:
        true, predicted = evaluation.name(row["label"]), evaluation.name(row["predicted"])
        caption = f"{true} → {predicted}, {row['score']:.0%} confidence"
        alt = f"Photograph {row['image_id']}: {true}, predicted as {predicted}"
        singles.append(Gallery(title="", pictures=[Picture(data=row["thumbnail"], alt=alt, caption=caption)]))
    kept, omitted = within_budget(singles, PHOTOGRAPH_BYTES)
    if not kept:
        return []
    description = f" {omitted} more are omitted." if omitted else ""
    return [
        Section(
            title="Most confident errors",
            text=f"True class → predicted class, highest confidence first.{description} Some of these are typically "
            "label errors.",
            galleries=[Gallery(title="", pictures=[picture for gallery in kept for picture in gallery.pictures])],
        )
    ]


def _extremes(evaluation: EvaluationTables, output: Location) -> list[Section]:
    if not (evaluation.classes["images"] > 0).any():
        return []
    best, worst = extremes(evaluation)
    write_table(output, "best_classes", best)
    write_table(output, "worst_classes", worst)
    return [
        Section(
            title="Best and worst classes",
            text="By recall. Ties: classes with more images first.",
            extra_tables=[
                ("Best classes", html_table(best, ("recall", "precision"))),
                ("Worst classes", html_table(worst, ("recall", "precision"))),
            ],
        )
    ]


def _class_sizes(evaluation: EvaluationTables) -> list[Section]:
    counts = evaluation.classes["train_images"].to_numpy(float).astype(int)
    if not len(counts):
        return []
    text = (
        f"Training images per class: maximum {counts.max():,}, minimum {counts.min():,}, "
        f"median {int(np.median(counts)):,}."
    )
    return [
        Section(
            title="Class sizes",
            text=text,
            chart=svg_text(classes_figure(counts, evaluation.names)),
            alt=f"Sizes of {len(counts):,} classes on a logarithmic scale. {text}",
        )
    ]


def _all_classes(evaluation: EvaluationTables) -> list[Section]:
    if not len(evaluation.classes):
        return []
    data = class_columns(evaluation)
    subset = (
        ""
        if data["shown"] == data["total"]
        else f" Shows {data['shown']:,} of {data['total']:,} classes, those in the split first. All classes are in "
        "classes.parquet."
    )
    return [
        Section(
            title="All classes",
            text=f"Search by name or label. Sort by any column.{subset}",
            widget=Widget(name="classes", data=data),
        )
    ]
