"""Page sections for an evaluation: results, bands, calibration, errors and classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from landmark.reporting.evaluation.charts import bands_svg, reliability_svg
from landmark.reporting.evaluation.classes import CHOSEN_CLASSES, MOST_CLASSES, class_columns, extremes, matrix_data
from landmark.reporting.evaluation.reader import Evaluated, confused_pairs, measures_table
from landmark.reporting.page import Gallery, Group, Picture, Section, Widget, html_table, within_budget
from landmark.reporting.plots import classes_figure, svg_text
from landmark.reporting.tables import write_table
from landmark.storage import Location

PHOTOGRAPH_BYTES = 900_000
"""Maximum size of a section's photographs, bytes."""
LISTED_PAIRS = 10_000
"""Maximum rows of the table next to the page. With many classes nearly every error is a pair of its own."""
SHOWN_PAIRS = 24
PICTURES_OF_A_PAIR = 2
SHOWN_MISTAKES = 48
PERCENT = ("model", "majority baseline", "random baseline", "neighbours")


def evaluation_groups(evaluated: Evaluated, output: Location) -> list[Group]:
    """Return the page's groups for an evaluation and write their tables next to the page."""
    return [
        Group(
            title="Results",
            sections=[
                _measures(evaluated, output),
                *_bands(evaluated, output),
                *_calibration(evaluated, output),
                *_comparison(evaluated, output),
            ],
        ),
        Group(
            title="Where it errs",
            sections=[*_matrix(evaluated), *_pairs(evaluated, output), *_mistakes(evaluated)],
        ),
        Group(title="Classes", sections=[*_extremes(evaluated, output), *_sizes(evaluated), *_search(evaluated)]),
    ]


def _measures(evaluated: Evaluated, output: Location) -> Section:
    metrics = evaluated.metrics
    table = measures_table(metrics)
    write_table(output, "measures", table)
    nothing = metrics.get("rows_without_landmark")
    speed = metrics.get("inference") or {}
    text = (
        f"{metrics['rows']:,} images of {metrics['classes_present']:,} classes"
        + (f", plus {nothing:,} images without a landmark" if nothing else "")
        + (f"; loss {metrics['loss']:.3f}." if metrics.get("loss") is not None else ".")  # k-NN has no loss
    )
    if bootstrap := metrics.get("bootstrap"):
        resampled = f" that sample {bootstrap['groups']:,} complete groups" if "groups" in bootstrap else ""
        text += f" Intervals: {bootstrap['samples']:,} bootstrap replicates{resampled}."
    if "images_per_s" in speed:
        text += f" Inference: {speed['images_per_s']:,.0f} images/s on {speed.get('device', 'an unknown device')}."
    return Section(
        title=f"Best model on the {metrics['split']} split", text=text, table=html_table(table, shares=PERCENT)
    )


def _bands(evaluated: Evaluated, output: Location) -> list[Section]:
    bands = evaluated.bands
    if not len(bands):
        return []
    write_table(output, "bands", bands)
    names = {"least_train_images": "minimum training images", "most_train_images": "maximum training images"}
    shares = [name for name in map(str, bands) if name.endswith("macro_recall") or "top" in name]
    names |= {name: name.replace("_", " ") for name in shares}
    shown = bands.rename(columns=names)
    told = "; ".join(f"{row['band']}: {row['top1']:.1%}" for row in bands.to_dict("records") if pd.notna(row["top1"]))
    return [
        Section(
            title="By class frequency",
            text="Classes in bands by number of training images, from the most frequent to the rarest.",
            chart=bands_svg(bands, evaluated.metrics["top1"]),
            alt=f"Bar chart of top-1 and macro recall per class-frequency band. Top-1 per band: {told}.",
            table=html_table(shown, [name.replace("_", " ") for name in shares]),
        )
    ]


def _calibration(evaluated: Evaluated, output: Location) -> list[Section]:
    bins = evaluated.calibration
    if not len(bins):
        return []
    write_table(output, "calibration", bins)
    rows = bins["rows"].sum()
    sure = (bins["confidence"].fillna(0) * bins["rows"]).sum() / max(rows, 1)
    right = (bins["accuracy"].fillna(0) * bins["rows"]).sum() / max(rows, 1)
    ece = evaluated.metrics.get("ece")
    gap = "overconfident" if sure > right else "underconfident"
    error = f" The expected calibration error is {ece:.2%}." if ece is not None else ""
    text = (
        f"The model is {gap}: its mean confidence is {sure:.1%}, and {right:.1%} of its predictions are correct.{error}"
    )
    return [
        Section(
            title="Calibration",
            text=text,
            chart=reliability_svg(bins),
            alt=f"Reliability diagram in {len(bins)} bins of confidence, and the number of predictions per bin. {text}",
        )
    ]


def _comparison(evaluated: Evaluated, output: Location) -> list[Section]:
    found = evaluated.comparison
    if not found:
        return []
    counts = {key: found.get(key, 0) for key in ("both_right", "only_a", "only_b", "both_wrong")}
    a, b = found.get("a", "A"), found.get("b", "B")
    answers = pd.DataFrame(
        [
            {"model": "A correct", "B correct": counts["both_right"], "B incorrect": counts["only_a"]},
            {"model": "A incorrect", "B correct": counts["only_b"], "B incorrect": counts["both_wrong"]},
        ]
    )
    differences = pd.DataFrame(
        [
            {
                "metric": "GAP" if key == "gap" else key.replace("top", "top-"),
                "A": value["a"],
                "B": value["b"],
                "A - B": value["difference"],
                "95 % interval": f"{value['low']:+.2%} – {value['high']:+.2%}",
            }
            for key, value in (found.get("difference") or {}).items()
        ]
    )
    write_table(output, "comparison", differences)
    p = found.get("mcnemar_p")
    chance = "" if p is None else f" McNemar's test: p = {p:.3g}."
    more = [("Predictions for the same images", html_table(answers))]
    for side, title in (
        ("only_a", "Classes that only A classifies correctly most often"),
        ("only_b", "Classes that only B classifies correctly most often"),
    ):
        classes = evaluated.compared_classes
        if len(classes) and (classes[side] > 0).any():
            top = classes[classes[side] > 0].sort_values(side, ascending=False, kind="stable").head(10)
            shown = top[["name", "images", "only_a", "only_b"]]
            more.append((title, html_table(shown.rename(columns={"only_a": "only A", "only_b": "only B"}))))
    return [
        Section(
            title="Beside another model",
            text=f"A is {a}, B is {b}, on the same {found.get('rows', sum(counts.values())):,} images.{chance}",
            table=html_table(differences, ("A", "B", "A - B")),
            more=more,
        )
    ]


def _matrix(evaluated: Evaluated) -> list[Section]:
    if not len(evaluated.confusion) or not len(evaluated.classes):
        return []
    total = len(evaluated.classes)
    which = "" if total <= MOST_CLASSES else f"The {CHOSEN_CLASSES} of {total:,} classes with the most errors. "
    return [
        Section(
            title="Confusion matrix",
            text=f"{which}Rows are true classes, columns are predictions. The color shows the fraction of the row. Zoom with the wheel, "
            "a pinch, or + and -. Drag to pan. Use the arrow keys to move between cells.",
            widget=Widget(name="matrix", data=matrix_data(evaluated)),
        )
    ]


def _pairs(evaluated: Evaluated, output: Location) -> list[Section]:
    pairs = confused_pairs(evaluated)
    if not len(pairs):
        return []
    first = pairs.head(LISTED_PAIRS)
    named = first.assign(
        **{side: [evaluated.name(label) for label in first[side].tolist()] for side in ("true", "predicted")}
    )
    write_table(output, "confused_pairs", named)
    galleries = [
        _pair_gallery(evaluated, pair) for pair in pairs.head(SHOWN_PAIRS).to_dict("records") if len(evaluated.examples)
    ]
    kept, left_out = within_budget([gallery for gallery in galleries if gallery.pictures], PHOTOGRAPH_BYTES)
    return [
        Section(
            title="Most confused pairs",
            text=f"{len(pairs):,} pairs of classes were confused. The table shows the first {min(SHOWN_PAIRS, len(pairs))}."
            + (f" {left_out} photographs are omitted." if left_out else ""),
            table=html_table(named.head(SHOWN_PAIRS), ("share",)),
            galleries=kept,
        )
    ]


def _pair_gallery(evaluated: Evaluated, pair: Mapping[Any, Any]) -> Gallery:
    """Return misclassified photographs of one class, between a typical photograph of each class."""
    examples = evaluated.examples
    true, predicted = int(pair["true"]), int(pair["predicted"])
    names = evaluated.name(true), evaluated.name(predicted)
    wrong = examples[
        (examples["kind"] == "pair") & (examples["label"] == true) & (examples["predicted"] == predicted)
    ].head(PICTURES_OF_A_PAIR)
    typical = examples[examples["kind"] == "class"]
    pictures = [
        Picture(
            data=row["thumbnail"],
            alt=f"Photograph {row['image_id']}: {names[0]}, predicted as {names[1]}",
            caption=f"{row['image_id']}, {row['score']:.0%} confidence",
            mark="error",
        )
        for row in wrong.to_dict("records")
    ]
    for label, name, mark in ((true, names[0], "true class"), (predicted, names[1], "predicted")):
        for row in typical[typical["label"] == label].head(1).to_dict("records") if pictures else ():
            picture = Picture(data=row["thumbnail"], alt=f"A photograph of {name}", caption=name, mark=mark)
            pictures.insert(0 if label == true else len(pictures), picture)
    title = f"{names[0]} predicted as {names[1]}: {pair['count']:.0f} times, {pair['share']:.0%} of the class's images"
    return Gallery(title=title, pictures=pictures)


def _mistakes(evaluated: Evaluated) -> list[Section]:
    if not len(evaluated.examples):
        return []
    rows = evaluated.examples[evaluated.examples["kind"] == "mistake"].head(SHOWN_MISTAKES).to_dict("records")
    singles = []
    for row in rows:
        true, answer = evaluated.name(row["label"]), evaluated.name(row["predicted"])
        caption = f"{true} → {answer}, {row['score']:.0%} confidence"
        alt = f"Photograph {row['image_id']}: {true}, predicted as {answer}"
        singles.append(Gallery(title="", pictures=[Picture(data=row["thumbnail"], alt=alt, caption=caption)]))
    kept, left_out = within_budget(singles, PHOTOGRAPH_BYTES)
    if not kept:
        return []
    told = f" {left_out} more are omitted." if left_out else ""
    return [
        Section(
            title="Confident mistakes",
            text=f"True class → predicted class, highest confidence first.{told} Some of these are often label errors.",
            galleries=[Gallery(title="", pictures=[picture for gallery in kept for picture in gallery.pictures])],
        )
    ]


def _extremes(evaluated: Evaluated, output: Location) -> list[Section]:
    if not (evaluated.classes["images"] > 0).any():
        return []
    best, worst = extremes(evaluated)
    write_table(output, "best_classes", best)
    write_table(output, "worst_classes", worst)
    return [
        Section(
            title="Best and worst classes",
            text="By recall. Ties: classes with more images first.",
            more=[
                ("Best classes", html_table(best, ("recall", "precision"))),
                ("Worst classes", html_table(worst, ("recall", "precision"))),
            ],
        )
    ]


def _sizes(evaluated: Evaluated) -> list[Section]:
    counts = evaluated.classes["train_images"].to_numpy(float).astype(int)
    if not len(counts):
        return []
    text = (
        f"Training images per class: maximum {counts.max():,}, minimum {counts.min():,}, "
        f"median {int(np.median(counts)):,}."
    )
    return [
        Section(
            title="Sizes of the classes",
            text=text,
            chart=svg_text(classes_figure(counts, evaluated.names)),
            alt=f"Training images of {len(counts):,} classes on a logarithmic scale. {text}",
        )
    ]


def _search(evaluated: Evaluated) -> list[Section]:
    if not len(evaluated.classes):
        return []
    data = class_columns(evaluated)
    left = (
        ""
        if data["shown"] == data["of"]
        else (
            f" Shows {data['shown']:,} of {data['of']:,} classes, those in the split first. All classes are in classes.parquet."
        )
    )
    return [
        Section(
            title="All classes",
            text=f"Search by name or label. Sort by any column.{left}",
            widget=Widget(name="classes", data=data),
        )
    ]
