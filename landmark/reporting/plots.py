"""Plots as PNG bytes: the confusion matrix, learning curves."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

SHOWN_CLASSES = 60
NAMED_CLASSES = 40
INK, GRID, ACCENT = "#1b2733", "#d9dee3", "#0b6e99"


def confusion_png(confusion: pa.Table, names: Sequence[str]) -> bytes:
    """Draw a confusion matrix, rows normalised to recall.

    confusion: true, predicted, count. Of more than 60 classes the 60 with the most wrong answers are
    shown, and the title says so.
    """
    true, predicted, count = (confusion[name].to_numpy() for name in ("true", "predicted", "count"))
    shown = np.arange(len(names))
    title = f"Confusion of {len(names)} classes (share of the true class)"
    if len(names) > SHOWN_CLASSES:
        wrong = np.bincount(true, weights=np.where(true == predicted, 0, count), minlength=len(names))
        shown = np.sort(np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES])
        title = f"The {SHOWN_CLASSES} of {len(names)} classes with the most wrong answers"
    matrix = _matrix(true, predicted, count, shown, len(names))
    side = min(13.0, 4.5 + 0.17 * len(shown))
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if len(shown) <= max(NAMED_CLASSES, SHOWN_CLASSES):
        labels = [_short(names[i]) for i in shown.tolist()]
        axes.set_xticks(range(len(shown)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(shown)), labels, fontsize=7)
    figure.colorbar(image, ax=axes, shrink=0.7)
    return _png(figure)


def curves_png(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, ylabel: str) -> bytes:
    """Draw one line a curve: name -> points of (epoch, value); the last point of each is marked."""
    figure = Figure(figsize=(8, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        x, y = [point[0] for point in points], [point[1] for point in points]
        (line,) = axes.plot(x, y, linewidth=1.5, label=_short(name, 48))
        axes.plot(x[-1:], y[-1:], marker="o", markersize=4, color=line.get_color())
    axes.set(title=title, xlabel="epoch", ylabel=ylabel)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(curves) <= 14:
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def _matrix(true: np.ndarray, predicted: np.ndarray, count: np.ndarray, shown: np.ndarray, classes: int) -> np.ndarray:
    """Return the shown part of the matrix, each row divided by all answers to its class."""
    support = np.bincount(true, weights=count, minlength=classes)
    place = np.full(classes, -1)
    place[shown] = np.arange(len(shown))
    inside = (place[true] >= 0) & (place[predicted] >= 0)
    matrix = np.zeros((len(shown), len(shown)))
    rows = place[true[inside]]
    matrix[rows, place[predicted[inside]]] = count[inside] / support[true[inside]]
    return matrix


def _short(name: str, length: int = 24) -> str:
    plain = name.replace("$", r"\$")
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
