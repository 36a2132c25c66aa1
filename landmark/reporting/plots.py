"""Plots as PNG bytes or as SVG for the page: confusion matrix, learning curves, class sizes."""

import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from landmark.reporting.fonts import MISSING_GLYPH, drawable_names

SHOWN_CLASSES = 60
NAMED_CLASSES = 40
TEXT_COLOR, GRID_COLOR, ACCENT_COLOR = "#1b2733", "#d9dee3", "#0b6e99"
LINES = (ACCENT_COLOR, "#b4551d", "#1f8a5b", "#7a4fa3")
"""Colors of the curves in one chart."""


def confusion_png(confusion: pa.Table, names: Sequence[str]) -> bytes:
    """Draw a confusion matrix with each row normalized by its number of images.

    confusion: true, predicted, count. If there are more than 60 classes, only the 60 with the most errors are shown,
    and the title says so.
    """
    true, predicted, count = (confusion[name].to_numpy() for name in ("true", "predicted", "count"))
    shown = np.arange(len(names))
    title = f"Confusion matrix of {len(names)} classes (fraction of the true class)"
    if len(names) > SHOWN_CLASSES:
        wrong = np.bincount(true, weights=np.where(true == predicted, 0, count), minlength=len(names))
        shown = np.sort(np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES])
        title = f"The {SHOWN_CLASSES} of {len(names)} classes with the most errors"
    matrix = _matrix(true, predicted, count, shown, len(names))
    side = min(13.0, 4.5 + 0.17 * len(shown))
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if len(shown) <= max(NAMED_CLASSES, SHOWN_CLASSES):
        labels, families = drawable_names([short_name(names[i]) for i in shown.tolist()], shown.tolist())
        axes.set_xticks(range(len(shown)), labels, rotation=90, fontsize=7, fontfamily=families)
        axes.set_yticks(range(len(shown)), labels, fontsize=7, fontfamily=families)
    figure.colorbar(image, ax=axes, shrink=0.7)
    return png_bytes(figure)


def classes_png(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw the class sizes as `classes_figure` does, with names that this machine's fonts can render."""
    return png_bytes(classes_figure(counts, names, for_page=False))


def classes_figure(counts: np.ndarray, names: Sequence[str], *, for_page: bool = True) -> Figure:
    """Draw the number of images per class on a logarithmic scale.

    counts: int (classes,). Up to 40 classes are drawn as one named bar each. More classes are drawn as a histogram of
    their sizes and as a plot by rank, which stays readable for 203,094 classes. for_page: the browser renders
    the names. Otherwise this machine's fonts are used.
    """
    if len(counts) <= NAMED_CLASSES:
        order = np.argsort(counts, kind="stable")
        figure = Figure(figsize=(7, 1.4 + 0.2 * len(counts)), dpi=100, layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(range(len(order)), counts[order], color=ACCENT_COLOR)
        axes.bar_label(bars, [f"{count:,}" for count in counts[order]], fontsize=7, padding=2)
        labels, families = [short_name(names[i], 32) for i in order.tolist()], None
        if not for_page:
            labels, families = drawable_names(labels, order.tolist())
        axes.set_yticks(range(len(order)), labels, fontsize=7, fontfamily=families)
        axes.set(title=f"Images per class ({len(counts)} classes)", xlabel="images", xscale="log")
        axes.margins(x=0.12, y=0.01)
        axes.set_xlim(left=0.5)
        panels = [axes]
    else:
        figure = Figure(figsize=(11, 4.2), dpi=100, layout="constrained")
        panels = list(figure.subplots(1, 2))
        upper = max(2, int(counts.max()) + 1)
        edges = np.unique(np.geomspace(1, upper, 40).round()) - 0.5
        panels[0].hist(counts, bins=edges.tolist(), color=ACCENT_COLOR)
        panels[0].set(title=f"{len(counts):,} classes by number of images", xlabel="images per class")
        panels[0].set(ylabel="classes", xscale="log", yscale="log")
        rank = np.arange(1, len(counts) + 1)
        # On a logarithmic axis a few hundred ranks look the same as all of them.
        kept = np.unique(np.geomspace(1, len(counts), 600).round().astype(int)) - 1
        panels[1].plot(
            rank[kept], np.maximum(np.sort(counts)[::-1], 0.5)[kept], color=ACCENT_COLOR, drawstyle="steps-mid"
        )
        panels[1].set(title="Class sizes in descending order", xlabel="class rank", ylabel="images")
        panels[1].set(xscale="log", yscale="log")
    for axes in panels:
        style_axes(axes)
    return figure


def curves_svg(curves: Mapping[str, Sequence[tuple[float, float]]], *, fractions: bool) -> str:
    """Draw one line per curve: name -> points of (epoch, value).

    The last point is marked. fractions: whether the values are fractions.
    """
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for (name, points), color in zip(curves.items(), itertools.cycle(LINES)):
        x, y = [point[0] for point in points], [point[1] for point in points]
        axes.plot(x, y, linewidth=2, color=color, label=short_name(name, 48))
        axes.plot(x[-1:], y[-1:], marker="o", markersize=5, color=color)
    axes.set(xlabel="epoch", ylabel="" if fractions else "cross entropy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if fractions:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    style_axes(axes)
    if curves:
        axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg_text(figure)


def style_axes(axes: Axes) -> None:
    """Add a grid to a chart and remove its frame."""
    axes.grid(color=GRID_COLOR, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID_COLOR)
    axes.tick_params(which="both", color=GRID_COLOR)


def _matrix(true: np.ndarray, predicted: np.ndarray, count: np.ndarray, shown: np.ndarray, classes: int) -> np.ndarray:
    """Return the shown part of the matrix. Each row is divided by the number of images of its class."""
    support = np.bincount(true, weights=count, minlength=classes)
    position = np.full(classes, -1)
    position[shown] = np.arange(len(shown))
    inside = (position[true] >= 0) & (position[predicted] >= 0)
    matrix = np.zeros((len(shown), len(shown)))
    rows = position[true[inside]]
    matrix[rows, position[predicted[inside]]] = count[inside] / support[true[inside]]
    return matrix


def short_name(name: str, length: int = 24) -> str:
    """Return a truncated name for a plot. `$` is escaped, because matplotlib would parse it as a formula."""
    plain = name.replace("$", r"\$")
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def svg_text(figure: Figure) -> str:
    """Return a figure as inline SVG: transparent background, text as text, ids that are unique on the page.

    The colors assume a white background. In the dark theme the page inverts them.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "landmark"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", MISSING_GLYPH)  # the browser's fonts render the text
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1))
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r"(font(?:-family)?: [^;\"']*)'[^;\"]*", r"\1system-ui, sans-serif", text)
    prefix = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
