"""Charts of a study as SVG: learning curves, search progress, parallel coordinates, effects, Pareto front.

Colors have the same meaning in all charts: blue for finished trials (darker is better), amber for trials stopped early,
red for failed ones.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from landmark.reporting.plots import ACCENT_COLOR, TEXT_COLOR, short_name, style_axes, svg_text
from landmark.reporting.study.effects import Effect
from landmark.reporting.study.series import Axis, Curve, SearchProgress, is_log
from landmark.reporting.tables import FAILED, FINISHED, METRIC_NAMES, STOPPED, metric_label, shown_metric

DPI, WIDTH = 150, 11.0
"""Resolution and width in inches of every chart: 1650 pixels, for a sharp image at the page's width of 1152."""
LINE_HEIGHT = 11.0
"""Line height of text, in points."""
STOPPED_COLOR, FAILED_COLOR, FINISHED_COLOR, MUTED_COLOR = "#c58a2b", "#b3382c", "#8fb3c4", "#5b6875"
BEST_COLORS = ("#0b3c5d", "#7a4fa3", "#1f8a5b")
"""Colors of the best three trials."""
SCORE_COLORMAP = LinearSegmentedColormap.from_list("score", ["#cfdbe2", "#7fb2c8", ACCENT_COLOR, "#082f49"])
"""From the worst to the best trial."""
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}


def learning_curves_svg(curves: Sequence[Curve], metric: str) -> str:
    """Draw the curves of all trials and how each one ended, with the best three in front."""
    figure = Figure(figsize=(WIDTH, 4.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    base_alpha = min(0.8, max(0.14, 12 / len(curves)))
    for curve in sorted(curves, key=lambda curve: -(curve.rank or math.inf)):
        if curve.rank is not None and curve.rank <= len(BEST_COLORS):
            _best_curve(axes, curve)
            continue
        color, line, marker = _style(curve.status)
        alpha = max(0.5, base_alpha) if curve.status == FINISHED else base_alpha
        axes.plot(curve.epochs, curve.values, color=color, linestyle=line, linewidth=1.1, alpha=alpha, zorder=2)
        size = 4.5 if marker == "o" else 5.5
        last = curve.epochs[-1:], curve.values[-1:]
        axes.plot(*last, marker, color=color, markersize=size, markeredgewidth=1.4, alpha=min(1, alpha + 0.2), zorder=3)
    _label_best(axes, [curve for curve in curves if curve.rank is not None and curve.rank <= len(BEST_COLORS)])
    handles = [
        _handle(
            BEST_COLORS[curve.rank - 1], *_style(curve.status)[1:], f"{curve.rank}  {short_name(curve.trial, 34)}", 2.6
        )
        for curve in sorted(curves, key=lambda curve: curve.rank or math.inf)
        if curve.rank is not None and curve.rank <= len(BEST_COLORS)
    ]
    for status in (FINISHED, STOPPED, FAILED):
        if count := sum(curve.status == status for curve in curves):
            handles.append(_handle(*_style(status), f"{status}: {count}"))
    axes.set(xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0)
    _metric_axis(axes, "y", metric, np.concatenate([curve.values for curve in curves]))
    style_axes(axes)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return svg_text(figure)


def search_progress_svg(progress: SearchProgress, metric: str, grid: int | None) -> str:
    """Draw the best value so far over the epochs of all trials.

    grid: number of epochs of the full grid, None if there is no grid.
    """
    figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(progress.values) + 1)
    axes.plot(epochs, progress.values, ".", color=FINISHED_COLOR, markersize=4, alpha=0.7, label="one epoch of a trial")
    axes.step(epochs, progress.best, where="post", color=BEST_COLORS[0], linewidth=2.2, label="best so far")
    improved = progress.improved
    axes.plot(epochs[improved], progress.best[improved], "o", color=BEST_COLORS[0], markersize=5, label="improvement")
    if grid:
        axes.axvline(grid, color=MUTED_COLOR, linestyle=(0, (5, 4)), linewidth=1.4, label=f"full grid: {grid:,} epochs")
    if len(improved):
        last = int(improved[-1])
        text = f"{shown_metric(metric, progress.best[last])} after {last + 1:,} epochs"
        below = progress.best[last] <= np.nanmedian(progress.values)
        right = epochs[last] > 0.5 * max(len(epochs), grid or 0)
        offset, align = (-6 if right else 6, -14 if below else 8), "right" if right else "left"
        point = (epochs[last], progress.best[last])
        axes.annotate(
            text,
            point,
            offset,
            textcoords="offset points",
            ha=align,
            fontsize=9,
            color=TEXT_COLOR,
            bbox=LABEL_BOX,
            zorder=5,
        )
    axes.set(xlabel="total epochs of all trials")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, 1.03 * max(len(epochs), grid or 0) + 0.5)
    _metric_axis(axes, "y", metric, progress.values)
    axes.margins(y=0.12)
    style_axes(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return svg_text(figure)


def parallel_svg(coordinates: Sequence[Axis], statuses: Sequence[str]) -> str:
    """Draw parallel coordinates: one line per trial, colored by the metric (the last axis). The best trial is bold."""
    width = max(7.0, min(WIDTH, 3.0 + 1.6 * len(coordinates)))
    figure = Figure(figsize=(width, 5.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    score = coordinates[-1].positions
    heights = np.stack([axis.positions for axis in coordinates])
    order = np.argsort(score, kind="stable")
    alpha = min(0.9, max(0.35, 25 / max(1, len(score))))
    polylines = [_smooth_line(heights[:, trial]) for trial in order]
    stopped_early = [statuses[trial] == STOPPED for trial in order]
    lines = LineCollection(
        polylines,
        colors=[(*SCORE_COLORMAP(score[trial])[:3], alpha) for trial in order],
        linewidths=1.4,
        linestyles=[(0, (4, 2)) if stopped else "solid" for stopped in stopped_early],
    )
    axes.add_collection(lines)
    axes.plot(*polylines[-1].T, color=SCORE_COLORMAP(1.0), linewidth=3.4, solid_capstyle="round", zorder=4)
    for number, axis in enumerate(coordinates):
        axes.axvline(number, color=MUTED_COLOR, linewidth=1.0, zorder=3)
        size = 9 if len(axis.ticks) <= 12 else 7
        for height, text in axis.ticks:
            label = shown_tick(axis, text)
            axes.plot([number - 0.012, number + 0.012], [height, height], color=TEXT_COLOR, linewidth=1.2, zorder=5)
            axes.text(
                number + 0.03,
                height,
                label,
                fontsize=size,
                va="center",
                color=TEXT_COLOR,
                bbox=LABEL_BOX,
                zorder=6,
                clip_on=False,
            )
    last = len(coordinates) - 1
    axes.imshow(
        np.linspace(0, 1, 128)[:, None], cmap=SCORE_COLORMAP, aspect="auto", origin="lower", zorder=5,
        extent=(last - 0.02, last + 0.02, 0, 1),
    )  # fmt: skip
    titles = [short_name(metric_label(axis.name), 26) for axis in coordinates]
    axes.set_xticks(range(len(coordinates)), titles, fontsize=9, rotation=0 if len(coordinates) <= 7 else 20)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=8)
    axes.set_yticks([])
    axes.set(xlim=(-0.1, last + 0.35), ylim=(-0.04, 1.04))
    axes.spines[:].set_visible(False)
    return svg_text(figure)


def effects_svg(effects: Sequence[Effect], metric: str, epoch: int | None) -> str:
    """Draw one panel per hyperparameter: the metric of each trial by value, and the mean and count per value.

    epoch: the last epoch whose values are compared. None: all epochs.
    """
    columns = min(2, len(effects))
    rows = math.ceil(len(effects) / columns)
    heights = [
        max(_panel_height(effect) for effect in effects[row * columns : (row + 1) * columns]) for row in range(rows)
    ]
    figure = Figure(figsize=(WIDTH if columns > 1 else 7.0, sum(heights)), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
    values = np.concatenate([effect.y for effect in effects])
    log, span = metric.endswith("loss") and is_log(values), values.max() - values.min()
    for axes, effect in zip(panels, effects, strict=False):
        if effect.x is None:
            _strips(axes, effect, metric)
        else:
            _scatter(axes, effect, metric)
        variance = "" if math.isnan(effect.explained) else f": {effect.explained:.0%} of the variance"
        axes.set_title(f"{short_name(effect.key, 36)}{variance}", fontsize=10, loc="left")
        _metric_axis(axes, "x", metric, values)
        axes.set_xlabel(f"{metric_label(metric)} up to epoch {epoch}" if epoch else metric_label(metric), fontsize=9)
        axes.tick_params(axis="x", labelsize=9)
        if not log:
            padding = 0.06 * span or 0.05 * abs(values[0]) or 0.05
            axes.set_xlim(values.min() - padding, values.max() + padding)
        style_axes(axes)
    for axes in panels[len(effects) :]:
        axes.set_visible(False)
    return svg_text(figure)


def pareto_svg(results: pd.DataFrame, objectives: Sequence[str]) -> str:
    """Draw one scatter plot of the study's metric per other objective.

    results: leaderboard rows with `pareto` as bool. Trials on the Pareto front are labeled with their rank.
    """
    metric, others = objectives[0], objectives[1:]
    figure = Figure(figsize=(WIDTH if len(others) > 1 else 8.0, 4.6), dpi=DPI, layout="constrained")
    front = results["pareto"].to_numpy(bool)
    for axes, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        x, y = results[other].to_numpy(float), results[metric].to_numpy(float)
        axes.plot(x[~front], y[~front], "o", color=FINISHED_COLOR, markersize=5, alpha=0.7, label="other trials")
        axes.plot(x[front], y[front], "o", color=BEST_COLORS[0], markersize=7, label="Pareto front", zorder=3)
        if len(objectives) == 2:
            order = np.argsort(x[front], kind="stable")
            # Between two adjacent trials of the front, the worse value in this objective applies.
            where = "post" if other == "parameters" else "pre"
            axes.step(
                x[front][order], y[front][order], where=where, color=BEST_COLORS[0], linewidth=1, alpha=0.6, zorder=2
            )
        for ranks, point in _merged_labels(
            results.loc[front, "rank"].tolist(), x[front], y[front], np.ptp(x), np.ptp(y)
        ):
            text = ", ".join(f"{rank:.0f}" for rank in ranks)
            axes.annotate(text, point, (6, 5), textcoords="offset points", fontsize=8, color=TEXT_COLOR, zorder=4)
        _metric_axis(axes, "x", other, x)
        _metric_axis(axes, "y", metric, y)
        axes.margins(0.08)
        style_axes(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return svg_text(figure)


def schedules_svg(schedules: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], best: str | None) -> str:
    """Draw hyperparameter schedules: key -> trial -> epochs, values. The best trial is bold."""
    figure = Figure(figsize=(WIDTH, 3.2 * len(schedules)), dpi=DPI, layout="constrained")
    for axes, (key, trials) in zip(
        figure.subplots(len(schedules), 1, squeeze=False)[:, 0], schedules.items(), strict=True
    ):
        for trial, (epochs, values) in trials.items():
            style: dict[str, Any] = {"color": FINISHED_COLOR, "linewidth": 1.2, "alpha": 0.8}
            if trial == best:
                style = {"color": BEST_COLORS[0], "linewidth": 2.6, "zorder": 4, "label": short_name(trial, 40)}
            axes.step(epochs, values, where="post", **style)
            axes.plot(epochs[1:-1], values[1:-1], "o", markersize=3.5, color=style["color"])
        axes.set_title(short_name(key, 60), fontsize=10, loc="left")
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0)
        if is_log(np.concatenate([values for _, values in trials.values()])):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        if best in trials:
            axes.legend(frameon=False, fontsize=9)
        style_axes(axes)
    return svg_text(figure)


def shown_tick(axis: Axis, text: str) -> str:
    """Return a tick's text. On the metric's axis it is formatted as the metric."""
    if axis.name in METRIC_NAMES:
        return _tick(axis.name, float(text))
    return short_name(text, 22)


def _style(status: str) -> tuple[str, Any, str]:
    """Return the color, line style and end marker of a trial by its status."""
    if status == STOPPED:
        return STOPPED_COLOR, "solid", "x"
    return (FAILED_COLOR, (0, (4, 3)), "X") if status == FAILED else (FINISHED_COLOR, "solid", "o")


def _best_curve(axes: Axes, curve: Curve) -> None:
    assert curve.rank is not None
    color, (_, line, marker) = BEST_COLORS[curve.rank - 1], _style(curve.status)
    axes.plot(curve.epochs, curve.values, color=color, linestyle=line, linewidth=2.4, zorder=6 - 0.1 * curve.rank)
    last = (curve.epochs[-1], curve.values[-1])
    axes.plot(*last, marker, color=color, markersize=6.5, markeredgewidth=2, zorder=7)


def _label_best(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write the ranks of the best trials next to their last points, without overlap."""
    low, high = axes.get_ylim()
    points = 250 / (high - low)
    previous = -math.inf
    for curve in sorted(curves, key=lambda curve: curve.values[-1]):
        assert curve.rank is not None
        height = max(curve.values[-1] * points, previous + LINE_HEIGHT)
        previous = height
        axes.annotate(
            str(curve.rank),
            (curve.epochs[-1], curve.values[-1]),
            (7, height - curve.values[-1] * points),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=BEST_COLORS[curve.rank - 1],
            zorder=8,
        )


def _handle(color: str, line: Any, marker: str, label: str, width: float = 1.4) -> Line2D:
    return Line2D([], [], color=color, linestyle=line, marker=marker, markersize=5.5, linewidth=width, label=label)


def _strips(axes: Axes, effect: Effect, metric: str) -> None:
    """Draw one row per value: a dot per trial, a bar at the mean, and a box plot if there are enough trials."""
    line = {"color": FINISHED_COLOR}
    for row, group in enumerate(effect.groups):
        count = len(group.values)
        if count >= 5:
            axes.boxplot(
                [group.values], positions=[row], orientation="horizontal", widths=0.55, showfliers=False,
                manage_ticks=False, patch_artist=True, boxprops={"facecolor": "#eef3f6", "edgecolor": FINISHED_COLOR},
                medianprops=line, whiskerprops=line, capprops=line,
            )  # fmt: skip
        # Deterministic jitter, so that the chart of a study is reproducible.
        offsets = 0.16 * np.sin(2.4 * np.arange(count)) if count > 1 else np.zeros(1)
        axes.plot(
            group.values, row + offsets, "o", color=ACCENT_COLOR, markersize=4, alpha=0.55, markeredgewidth=0, zorder=3
        )
        axes.plot([group.mean] * 2, [row - 0.32, row + 0.32], color=TEXT_COLOR, linewidth=2.2, zorder=4)
    texts = [
        f"{short_name(group.label, 22)}\nn={len(group.values)}, mean {shown_metric(metric, group.mean)}"
        for group in effect.groups
    ]
    axes.set_yticks(range(len(texts)), texts, fontsize=8)
    axes.set_ylim(-0.6, len(texts) - 0.4)


def _scatter(axes: Axes, effect: Effect, metric: str) -> None:
    """Draw a continuous hyperparameter: one dot per trial, and a bar at the mean of each quantile range."""
    assert effect.x is not None
    axes.plot(effect.y, effect.x, "o", color=ACCENT_COLOR, markersize=4.5, alpha=0.55, markeredgewidth=0, zorder=3)
    order = np.argsort(effect.x, kind="stable")
    ends = np.cumsum([0, *(len(group.values) for group in effect.groups)])
    for group, start, end in zip(effect.groups, ends[:-1], ends[1:], strict=True):
        inside = effect.x[order][start:end]
        axes.plot([group.mean] * 2, [inside.min(), inside.max()], color=TEXT_COLOR, linewidth=2.2, zorder=4)
    if is_log(effect.x):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="y", labelsize=8)
    axes.text(
        0.02,
        0.97,
        f"n={len(effect.y)}, mean {shown_metric(metric, float(effect.y.mean()))}",
        transform=axes.transAxes,
        va="top",
        fontsize=8,
        color=MUTED_COLOR,
        bbox=LABEL_BOX,
        zorder=5,
    )


def _panel_height(effect: Effect) -> float:
    return 3.0 if effect.x is not None else min(9.0, 1.1 + 0.42 * len(effect.groups))


def _smooth_line(heights: np.ndarray) -> np.ndarray:
    """Return a trial's line through its heights, horizontal at each axis: float (points, 2)."""
    steps = np.linspace(0, 1, 24)
    ease = steps * steps * (3 - 2 * steps)
    segments = [
        np.stack([number + steps, before + (after - before) * ease], axis=1)
        for number, (before, after) in enumerate(itertools.pairwise(heights))
    ]
    return np.concatenate(segments) if segments else np.array([[0.0, heights[0]]])


def _metric_axis(axes: Axes, side: str, metric: str, values: np.ndarray) -> None:
    """Label an axis with its metric, format its ticks, and use a logarithmic scale if losses have a wide range."""
    axis = axes.xaxis if side == "x" else axes.yaxis
    if metric not in ("val_top1", "val_top5", "val_macro_recall") and is_log(values):
        (axes.set_xscale if side == "x" else axes.set_yscale)("log")
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(metric, value)))
    axis.set_label_text(metric_label(metric))


def _merged_labels(
    ranks: Sequence[float], x: np.ndarray, y: np.ndarray, width: float, height: float
) -> list[tuple[list[float], tuple[float, float]]]:
    """Return labels and their positions. Trials whose points nearly coincide share one label."""
    labels: list[tuple[list[float], tuple[float, float]]] = []
    for rank, point in sorted(zip(ranks, zip(x.tolist(), y.tolist(), strict=True), strict=True)):
        near = (g for g, (u, v) in labels if abs(point[0] - u) <= 0.03 * width and abs(point[1] - v) <= 0.04 * height)
        if (group := next(near, None)) is not None:
            group.append(rank)
        else:
            labels.append(([rank], point))
    return labels


def _tick(metric: str, value: float) -> str:
    return shown_metric(metric, value).replace(".0%", "%")
