"""Sections of the page about an evaluation: results, bands, calibration, where the model errs, its classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from landmark.reporting.charts import bands_svg, reliability_svg
from landmark.reporting.classes import CHOSEN_CLASSES, MOST_CLASSES, class_columns, extremes, matrix_data
from landmark.reporting.evaluation import Evaluated, confused_pairs, measures_table
from landmark.reporting.page import Gallery, Group, Picture, Section, Widget, html_table, within_budget
from landmark.reporting.plots import classes_figure, svg_text
from landmark.reporting.tables import write_table
from landmark.storage import Location

PHOTOGRAPH_BYTES = 900_000
"""Room that the page gives to the photographs of a section."""
LISTED_PAIRS = 10_000
"""Pairs in the table beside the page: of many classes nearly every wrong answer is a pair of its own."""
SHOWN_PAIRS = 24
PICTURES_OF_A_PAIR = 2
SHOWN_MISTAKES = 48
PERCENT = ("model", "majority baseline", "random baseline", "neighbours")


def evaluation_groups(evaluated: Evaluated, output: Location) -> list[Group]:
    """Return the page's groups about an evaluation, and write their tables beside the page."""
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
        + (f", and {nothing:,} without a landmark" if nothing else "")
        + (f"; loss {metrics['loss']:.3f}." if metrics.get("loss") is not None else ".")  # k-NN has none
    )
    if bootstrap := metrics.get("bootstrap"):
        resampled = f", which sample {bootstrap['groups']:,} complete groups" if "groups" in bootstrap else ""
        text += f" Intervals are of {bootstrap['samples']:,} bootstrap replicates{resampled}."
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
    names = {"least_train_images": "fewest training images", "most_train_images": "most training images"}
    shares = [name for name in map(str, bands) if name.endswith("macro_recall") or "top" in name]
    names |= {name: name.replace("_", " ") for name in shares}
    shown = bands.rename(columns=names)
    told = "; ".join(f"{row['band']}: {row['top1']:.1%}" for row in bands.to_dict("records") if pd.notna(row["top1"]))
    return [
        Section(
            title="By class frequency",
            text="Classes in bands by their number of training images, from the most frequent to the rarest.",
            chart=bands_svg(bands, evaluated.metrics["top1"]),
            alt=f"Bars of top-1 and macro recall by band of class frequency. Top-1 of {told}.",
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
    gap = "surer than it is right" if sure > right else "less sure than it is right"
    error = f" The expected calibration error is {ece:.2%}." if ece is not None else ""
    text = f"The model is {gap}: its mean confidence is {sure:.1%}, and {right:.1%} of its answers are right.{error}"
    return [
        Section(
            title="Calibration",
            text=text,
            chart=reliability_svg(bins),
            alt=f"Reliability diagram in {len(bins)} bins of confidence, and the number of answers in each. {text}",
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
            {"model": "A is right", "B is right": counts["both_right"], "B is wrong": counts["only_a"]},
            {"model": "A is wrong", "B is right": counts["only_b"], "B is wrong": counts["both_wrong"]},
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
    chance = (
        "" if p is None else f" If both were equally good, a difference as large had probability {p:.3g} (McNemar)."
    )
    more = [("Answers to the same images", html_table(answers))]
    for side, title in (("only_a", "Classes that A alone gets right most often"), ("only_b", "… and B alone")):
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
    which = "" if total <= MOST_CLASSES else f"The {CHOSEN_CLASSES} of {total:,} classes with the most wrong answers. "
    return [
        Section(
            title="Confusion matrix",
            text=f"{which}A row is a true class, a column an answer; the stronger its colour, the greater the share of the row. Wheel, "
            "pinch or + and - zoom, dragging moves, arrow keys go from cell to cell.",
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
            text=f"{len(pairs):,} pairs of classes were confused; the first {min(SHOWN_PAIRS, len(pairs))}."
            + (f" {left_out} photographs are left out." if left_out else ""),
            table=html_table(named.head(SHOWN_PAIRS), ("share",)),
            galleries=kept,
        )
    ]


def _pair_gallery(evaluated: Evaluated, pair: Mapping[Any, Any]) -> Gallery:
    """Return photographs of one class that were taken for another, between one of each."""
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
            alt=f"Photograph {row['image_id']}: {names[0]}, taken for {names[1]}",
            caption=f"{row['image_id']}, {row['score']:.0%} sure",
            mark="mistaken",
        )
        for row in wrong.to_dict("records")
    ]
    for label, name, mark in ((true, names[0], "it is"), (predicted, names[1], "taken for")):
        for row in typical[typical["label"] == label].head(1).to_dict("records") if pictures else ():
            picture = Picture(data=row["thumbnail"], alt=f"A photograph of {name}", caption=name, mark=mark)
            pictures.insert(0 if label == true else len(pictures), picture)
    title = f"{names[0]} taken for {names[1]}: {pair['count']:.0f} times, {pair['share']:.0%} of its images"
    return Gallery(title=title, pictures=pictures)


def _mistakes(evaluated: Evaluated) -> list[Section]:
    if not len(evaluated.examples):
        return []
    rows = evaluated.examples[evaluated.examples["kind"] == "mistake"].head(SHOWN_MISTAKES).to_dict("records")
    singles = []
    for row in rows:
        true, answer = evaluated.name(row["label"]), evaluated.name(row["predicted"])
        caption = f"{true} → {answer}, {row['score']:.0%} sure"
        alt = f"Photograph {row['image_id']}: {true}, taken for {answer}"
        singles.append(Gallery(title="", pictures=[Picture(data=row["thumbnail"], alt=alt, caption=caption)]))
    kept, left_out = within_budget(singles, PHOTOGRAPH_BYTES)
    if not kept:
        return []
    told = f" {left_out} more are left out." if left_out else ""
    return [
        Section(
            title="Confident mistakes",
            text=f"What each photograph is → what the model said, the surest first.{told} Wrong labels are often among them.",
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
            text="By recall; of equal ones those with the most images.",
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
        f"From {counts.max():,} training images in the largest to {counts.min():,} in the smallest, "
        f"{int(np.median(counts)):,} in the median."
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
            f" {data['shown']:,} of {data['of']:,} classes, those that occur in the split first; all are in classes.parquet."
        )
    )
    return [
        Section(
            title="All classes",
            text=f"Search by name or label, sort by any column.{left}",
            widget=Widget(name="classes", data=data),
        )
    ]
