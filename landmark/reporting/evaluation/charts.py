"""Charts of an evaluation as SVG: reliability diagram and metrics per class-frequency band."""

import pandas as pd
from matplotlib.figure import Figure

from landmark.reporting.plots import ACCENT_COLOR, GRID_COLOR, TEXT_COLOR, style_axes, svg_text

MUTED_COLOR = "#5b6875"


def reliability_svg(bins: pd.DataFrame) -> str:
    """Draw accuracy against confidence, and the number of predictions per confidence bin.

    bins: low, high, rows, confidence, accuracy. The last two are fractions, NaN in a bin without rows.
    """
    figure = Figure(figsize=(9, 4.4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    filled = bins[bins["rows"] > 0]
    width = (bins["high"] - bins["low"]).clip(lower=1e-6)
    left.bar(
        filled["low"],
        filled["accuracy"],
        width=width[filled.index],
        align="edge",
        color=ACCENT_COLOR,
        alpha=0.35,
        edgecolor=ACCENT_COLOR,
        label="accuracy of the bin",
    )
    left.plot(
        filled["confidence"],
        filled["accuracy"],
        "o",
        color=ACCENT_COLOR,
        markersize=4,
        label="mean confidence of the bin",
    )
    left.plot([0, 1], [0, 1], color=MUTED_COLOR, linestyle=(0, (4, 3)), linewidth=1.2, label="perfect calibration")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    right.bar(
        bins["low"],
        bins["rows"],
        width=width,
        align="edge",
        color=ACCENT_COLOR,
        alpha=0.35,
        edgecolor=ACCENT_COLOR,
    )
    right.set(xlim=(0, 1), xlabel="confidence", ylabel="predictions")
    for axes in (left, right):
        style_axes(axes)
    return svg_text(figure)


def bands_svg(bands: pd.DataFrame, overall: float) -> str:
    """Draw top-1 and macro recall per class-frequency band.

    overall: top-1 of all images. bands: band, classes, top1, macro_recall. The last two are fractions, NaN in a band
    without images.
    """
    figure = Figure(figsize=(9, 0.9 + 0.75 * len(bands)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for offset, name, color, alpha in ((-0.18, "top1", ACCENT_COLOR, 0.9), (0.18, "macro_recall", ACCENT_COLOR, 0.4)):
        label = {"top1": "top-1", "macro_recall": "macro recall"}[name]
        positions = [position + offset for position in range(len(bands))]
        bars = axes.barh(positions, bands[name].fillna(0), height=0.34, color=color, alpha=alpha, label=label)
        axes.bar_label(
            bars, [f"{v:.1%}" if v == v else "–" for v in bands[name]], padding=3, fontsize=9, color=TEXT_COLOR
        )
    axes.axvline(
        overall, color=MUTED_COLOR, linestyle=(0, (4, 3)), linewidth=1.2, label=f"overall top-1: {overall:.1%}"
    )
    labels = [f"{band} ({classes:,} classes)" for band, classes in zip(bands["band"], bands["classes"], strict=True)]
    axes.set_yticks(range(len(bands)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOR)
    axes.tick_params(color=GRID_COLOR)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return svg_text(figure)
