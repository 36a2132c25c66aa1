"""Data of a study's charts: learning curves, search progress, parallel coordinates, hyperparameter schedules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator

from landmark.reporting.study.effects import UNSET, is_continuous, labels_of, shown_value
from landmark.reporting.tables import StudyTables

LOG_SPAN = 30.0
"""Positive numbers use a logarithmic axis if the maximum is more than this many times the 10% quantile."""
UNSET_FRACTION = 0.14
"""Fraction of an axis, below the numbers, that is reserved for trials without a value."""
TICK_DISTANCE = 0.09
"""Ticks closer than this to an end of their axis are omitted."""


@dataclass(kw_only=True, frozen=True)
class Curve:
    """A trial's learning curve."""

    trial: str
    status: str
    rank: int | None
    """Leaderboard rank. None for a trial that failed."""
    epochs: np.ndarray
    """int (points,)."""
    values: np.ndarray
    """The metric, float (points,), without NaN."""


@dataclass(kw_only=True, frozen=True)
class SearchProgress:
    """The best value so far by epochs trained: one point per report, in the order of the reports."""

    values: np.ndarray
    """The metric, float (reports,), NaN if missing. Each report adds one trained epoch."""
    best: np.ndarray
    """The best so far, float (reports,), NaN before the first value."""
    improved: np.ndarray
    """Indices of reports with a new best value: int (bests,), from 0."""


@dataclass(kw_only=True, frozen=True)
class Axis:
    """One axis of parallel coordinates."""

    name: str
    positions: np.ndarray
    """Position of each trial on the axis, float (trials,), between 0 and 1."""
    ticks: list[tuple[float, str]]
    """Position and label."""
    categorical: bool
    """Whether the axis has names or few values, so that many trials share a position."""


def learning_curves(study: StudyTables) -> list[Curve]:
    """Return the curves in leaderboard order. Trials without a reported value have no curve."""
    rows = study.history.dropna(subset=[study.metric]).sort_values("epoch", kind="stable")
    by_trial = dict(iter(rows.groupby("trial")))
    ranks = study.board["rank"] if "rank" in study.board else pd.Series(np.nan, index=study.board.index)
    return [
        Curve(
            trial=trial,
            status=status,
            rank=None if pd.isna(rank) else int(rank),
            epochs=by_trial[trial]["epoch"].to_numpy(int),
            values=by_trial[trial][study.metric].to_numpy(float),
        )
        for trial, status, rank in zip(study.board["trial"], study.board["status"], ranks, strict=True)
        if trial in by_trial
    ]


def search_progress(study: StudyTables) -> SearchProgress:
    """Return the best value so far after each epoch of any trial.

    Reports are ordered by `reported_at`. Studies without that column are ordered by epoch.
    """
    by_time = "reported_at" in study.history and study.history["reported_at"].notna().any()
    rows = study.history.sort_values("reported_at" if by_time else "epoch", kind="stable")
    values = rows[study.metric].to_numpy(float)
    best = (rows[study.metric].cummax() if study.mode == "max" else rows[study.metric].cummin()).ffill().to_numpy(float)
    before = np.concatenate([[np.nan], best[:-1]]) if len(best) else best
    improved = np.flatnonzero(~np.isnan(best) & (best != before))
    return SearchProgress(values=values, best=best, improved=improved)


def parallel_axes(study: StudyTables) -> list[Axis]:
    """Return one axis per searched key that differs, and the metric's axis as the last. Better values are higher on it.

    Trials are the rows of `study.results`. On categorical axes, trials with the same value are spread slightly,
    in the order of the metric, so that lines do not hide each other.
    """
    results = study.results
    keys = [key for key in study.keys if results[key].nunique(dropna=False) > 1]
    metric = _numeric_axis(study.metric, results[study.metric])
    if study.mode == "min":
        metric = Axis(
            name=metric.name,
            positions=1 - metric.positions,
            ticks=[(1 - height, text) for height, text in metric.ticks],
            categorical=False,
        )
    axes = [
        _numeric_axis(key, results[key])
        if is_continuous(results[key])
        else _categorical_axis(key, results[key], metric)
        for key in keys
    ]
    return [*axes, metric]


def is_log(values: np.ndarray) -> bool:
    """Return whether numbers need a logarithmic axis.

    A uniform distribution with a few near-zero values does not need one.
    """
    defined = values[~np.isnan(values)]
    low = np.quantile(defined, 0.1, method="lower") if len(defined) else 0.0
    return bool(low > 0 and defined.min() > 0 and defined.max() > LOG_SPAN * low)


def changed_keys(exploits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the numeric hyperparameters that population based training changed."""
    keys = dict.fromkeys(key for exploit in exploits for key in exploit["changed"])
    return [key for key in keys if all(_is_number(v) for e in exploits for v in e["changed"].get(key, ()))]


def schedule_of(
    study: StudyTables, exploits: Sequence[Mapping[str, Any]], key: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return a hyperparameter's schedule for each trial, as changed by population based training.

    Returns trial -> epochs int (points,), values float (points,). A value applies from its epoch to the epoch of the
    next point. The last point is the trial's last epoch.
    """
    last_epochs = study.history.groupby("trial")["epoch"].max()
    initial = study.board.set_index("trial")[key] if key in study.board else pd.Series(dtype=float)
    schedules = {}
    for trial, end in last_epochs.items():
        changes = sorted(
            (int(exploit["epoch"]), *exploit["changed"][key])
            for exploit in exploits
            if exploit["trial"] == trial and key in exploit["changed"]
        )
        start = changes[0][1] if changes else initial.get(trial, np.nan)
        values = [start, *(after for _, _, after in changes)]
        epochs = np.array([0, *(epoch for epoch, _, _ in changes), end], dtype=int)
        values.append(values[-1])
        if not pd.isna(start):
            schedules[str(trial)] = epochs, np.array(values, dtype=float)
    return schedules


def exploits_table(exploits: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the exploits in order of their epochs. Columns: epoch, trial, took over from, what changed."""
    rows = [
        {
            "epoch": exploit["epoch"],
            "trial": exploit["trial"],
            "took over from": exploit["source"],
            "what changed": ", ".join(
                f"{key} {shown_value(before)} → {shown_value(after)}"
                for key, (before, after) in exploit["changed"].items()
            ),
        }
        for exploit in sorted(exploits, key=lambda exploit: exploit["epoch"])
    ]
    return pd.DataFrame(rows, columns=["epoch", "trial", "took over from", "what changed"])


def _numeric_axis(name: str, values: pd.Series) -> Axis:
    numbers = values.to_numpy(float)
    defined = numbers[~np.isnan(numbers)]
    if not len(defined):
        return Axis(name=name, positions=np.zeros(len(numbers)), ticks=[], categorical=False)
    low, high = float(defined.min()), float(defined.max())
    bottom = UNSET_FRACTION if len(defined) < len(numbers) else 0.0
    logarithmic = is_log(defined)

    def height(value: Any) -> Any:
        if low == high:
            return bottom + (1 - bottom) / 2 + 0 * value
        fraction = np.log(value / low) / np.log(high / low) if logarithmic else (value - low) / (high - low)
        return bottom + (1 - bottom) * fraction

    locator = LogLocator(10) if logarithmic else MaxNLocator(5, steps=[1, 2, 5, 10])
    inner = [float(tick) for tick in locator.tick_values(low, high) if low < tick < high]
    kept = [tick for tick in inner if bottom + TICK_DISTANCE < height(tick) < 1 - TICK_DISTANCE]
    ticks = [(float(height(tick)), shown_value(tick)) for tick in dict.fromkeys([low, *kept, high])]
    unset = [(0.0, UNSET)] if bottom else []
    return Axis(name=name, positions=np.nan_to_num(height(numbers), nan=0.0), ticks=[*unset, *ticks], categorical=False)


def _categorical_axis(name: str, values: pd.Series, metric: Axis) -> Axis:
    labels, order = labels_of(values)
    step = 1 / max(1, len(order) - 1)
    positions = np.zeros(len(labels))
    spread = min(0.045, 0.3 * step)
    for number, label in enumerate(order):
        members = np.flatnonzero((labels == label).to_numpy())
        by_metric = members[np.argsort(metric.positions[members], kind="stable")]
        offsets = np.linspace(-spread, spread, len(members)) if len(members) > 1 else np.zeros(len(members))
        positions[by_metric] = number * step + offsets
    ticks = [(number * step, label) for number, label in enumerate(order)]
    # Keep the jitter of the outermost labels inside the axis.
    scale = 1 / (1 + 2 * spread)
    return Axis(
        name=name,
        positions=(positions + spread) * scale,
        ticks=[((height + spread) * scale, label) for height, label in ticks],
        categorical=True,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
