"""Effect of each hyperparameter on a study's metric: comparable trials, groups by value, explained variance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from landmark.reporting.tables import FINISHED, StudyTables

FEW_VALUES = 6
"""Numeric parameters with at most this many distinct values are grouped by value."""
BINS = 5
"""Number of quantile groups of a continuous parameter."""
MIN_TRIALS = 4
"""Minimum number of trials for a fraction of explained variance."""
UNSET, STUDY_DATASET = "none", "study dataset"
"""Labels for a parameter without a value in a trial, and for a trial that uses the study's own dataset."""


@dataclass(kw_only=True, frozen=True)
class ComparableTrials:
    """Trials with comparable results."""

    trials: pd.DataFrame
    """Leaderboard rows. The metric column contains the values to compare."""
    keys: list[str]
    """Searched keys that differ between the trials and can be compared."""
    epoch: int | None
    """The last epoch whose values are compared. None: all epochs."""
    description: str
    """The selection of the trials, in one or two sentences."""


@dataclass(kw_only=True, frozen=True)
class Group:
    """Trials with the same value, or the same range of values, of a parameter."""

    label: str
    values: np.ndarray
    """The metric, float (trials,)."""

    @property
    def mean(self) -> float:
        """Mean of the metric."""
        return float(self.values.mean())


@dataclass(kw_only=True, frozen=True)
class Effect:
    """Effect of one parameter on the metric."""

    key: str
    x: np.ndarray | None
    """The parameter, float (trials,). None if the parameter has few values."""
    y: np.ndarray
    """The metric, float (trials,)."""
    groups: list[Group]
    """The trials by value, or by quantile of a continuous parameter in ascending order."""

    @property
    def explained(self) -> float:
        """Fraction of the metric's variance between the groups (eta squared), NaN if undefined."""
        total = float(((self.y - self.y.mean()) ** 2).sum()) if len(self.y) else 0.0
        if len(self.y) < MIN_TRIALS or not 1 < len(self.groups) < len(self.y) or total == 0:
            return float("nan")
        mean = float(self.y.mean())
        return sum(len(group.values) * (group.mean - mean) ** 2 for group in self.groups) / total

    @property
    def expected_by_chance(self) -> float:
        """Expected value of `explained` for a parameter without effect: (groups - 1) / (trials - 1)."""
        return (len(self.groups) - 1) / (len(self.y) - 1) if len(self.y) > 1 else float("nan")


def comparable_trials(study: StudyTables) -> ComparableTrials:
    """Return the trials that can be compared fairly.

    If at least half of the trials with a result finished, those are compared by their best epoch. Otherwise most trials
    were stopped early and the finished ones are a biased selection. All trials are then compared by their best value up
    to one epoch: the last epoch that half of them reached. `epochs` is not analyzed in that case.
    """
    metric, board = study.metric, study.results
    finished = board[board["status"] == FINISHED]
    excluded = f"Excluded trials: {len(study.board) - len(finished)}."
    if 2 * len(finished) >= len(board):
        description = f"Based on the {len(finished)} trials that ran all of their epochs. {excluded}"
        keys = _varying_keys(finished, study.keys)
        return ComparableTrials(trials=finished, keys=keys, epoch=None, description=description)
    last_epoch = study.history.groupby("trial")["epoch"].max().reindex(board["trial"]).fillna(0)
    epoch = int(last_epoch.sort_values(ascending=False).iloc[(len(board) - 1) // 2])
    rows = study.history[study.history["epoch"] <= epoch].groupby("trial")[metric]
    at_epoch = (rows.max() if study.mode == "max" else rows.min()).dropna()
    names = set(last_epoch[last_epoch >= epoch].index) & set(at_epoch.index)
    reaching = board[board["trial"].isin(names)]
    reaching = reaching.assign(**{metric: reaching["trial"].map(at_epoch)})
    description = (
        f"Most trials were stopped early, so trials are compared by their best value up to epoch {epoch}. Based on "
        f"the {len(reaching)} trials that reached this epoch. Excluded trials: {len(study.board) - len(reaching)}. "
        "This comparison favors trials that learn fast."
    )
    keys = [key for key in study.keys if key != "epochs"]
    if "epochs" in _varying_keys(reaching, study.keys):
        description += " The number of epochs is not analyzed, because all trials are compared at the same epoch."
    return ComparableTrials(trials=reaching, keys=_varying_keys(reaching, keys), epoch=epoch, description=description)


def effect_of(trials: pd.DataFrame, key: str, metric: str) -> Effect:
    """Return the effect of a parameter on the metric: groups by value, or by quantile if it is continuous."""
    if not is_continuous(trials[key]):
        return Effect(key=key, x=None, y=trials[metric].to_numpy(float), groups=_by_value(trials, key, metric))
    defined = trials[trials[key].notna()]
    x, y = defined[key].astype(float), defined[metric].to_numpy(float)
    bins = max(2, min(BINS, len(x) // 3))
    # Equal values have equal ranks, so no value is split across two bins.
    bin_index = np.minimum((x.rank().to_numpy() - 0.5) * bins / len(x), bins - 1).astype(int)
    groups = [
        Group(
            label=f"{shown_value(x[bin_index == number].min())} … {shown_value(x[bin_index == number].max())}",
            values=values,
        )
        for number in range(bins)
        if len(values := y[bin_index == number])
    ]
    return Effect(key=key, x=x.to_numpy(), y=y, groups=groups)


def importance(effects: Sequence[Effect], mode: str) -> pd.DataFrame:
    """Return the parameters sorted by the fraction of variance that each one explains on its own, largest first.

    Columns: parameter, groups, trials, explained and by_chance (fractions of variance), best (the group with the best
    mean), best_mean.
    """
    rows = []
    for effect in effects:
        best = (max if mode == "max" else min)(effect.groups, key=lambda group: group.mean)
        unit = "quantile ranges" if effect.x is not None else "values"
        rows.append(
            {
                "parameter": effect.key,
                "groups": f"{len(effect.groups)} {unit}",
                "trials": len(effect.y),
                "explained": effect.explained,
                "by_chance": effect.expected_by_chance,
                "best": best.label,
                "best_mean": best.mean,
            }
        )
    columns = ["parameter", "groups", "trials", "explained", "by_chance", "best", "best_mean"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("explained", ascending=False, na_position="last", kind="stable", ignore_index=True)


def is_continuous(values: pd.Series) -> bool:
    """Return whether a parameter is numeric and has a different value in nearly every trial."""
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return False
    defined = values.dropna()
    return defined.nunique() > FEW_VALUES or 2 < defined.nunique() == len(defined)


def labels_of(values: pd.Series) -> tuple[pd.Series, list[str]]:
    """Return each trial's value as text, and the sorted texts: numbers by size, words alphabetically, unset last."""
    defined = values.dropna().drop_duplicates()
    numeric = pd.api.types.is_numeric_dtype(values)
    ordered = (
        defined.sort_values() if numeric else defined.sort_values(key=lambda column: column.astype(str).str.lower())
    )
    texts = list(dict.fromkeys(shown_value(value) for value in ordered))
    unset = STUDY_DATASET if values.name == "dataset" else UNSET
    labels = pd.Series([unset if pd.isna(value) else shown_value(value) for value in values], index=values.index)
    return labels, [*texts, *([unset] if values.isna().any() and unset not in texts else [])]


def shown_value(value: object) -> str:
    """Return a parameter's value as text."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _by_value(trials: pd.DataFrame, key: str, metric: str) -> list[Group]:
    labels, order = labels_of(trials[key])
    return [Group(label=label, values=trials.loc[labels == label, metric].to_numpy(float)) for label in order]


def _varying_keys(trials: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if trials[key].nunique(dropna=False) > 1]
