"""What each searched parameter did to a study's metric: which trials compare, groups by value, variance explained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from landmark.reporting.tables import FINISHED, StudyTables

FEW_VALUES = 6
"""Numbers of at most so many distinct values are groups by value."""
BINS = 5
"""Groups that a continuous parameter is cut into, of equally many trials."""
LEAST_TRIALS = 4
"""Trials without which no share of variance is given."""
UNSET, OWN_DATASET = "none", "the study's"
"""What a parameter is called in a trial that has no value for it, and a dataset that is not named."""


@dataclass(kw_only=True, frozen=True)
class Comparable:
    """The trials whose results compare, and their results."""

    trials: pd.DataFrame
    """Their rows of the leaderboard, the metric's column replaced by what they are compared by."""
    keys: list[str]
    """Searched keys that differ between them and can be judged."""
    epoch: int | None
    """Epoch up to which they are compared; None: their last."""
    told: str
    """Which trials these are, in a sentence or two."""


@dataclass(kw_only=True, frozen=True)
class Group:
    """Trials that share a parameter's value or range of values."""

    label: str
    values: np.ndarray
    """The metric, float (trials,)."""

    @property
    def mean(self) -> float:
        """Mean of the metric."""
        return float(self.values.mean())


@dataclass(kw_only=True, frozen=True)
class Effect:
    """One parameter beside the metric."""

    key: str
    x: np.ndarray | None
    """The parameter, float (trials,), where it is continuous; None where it has few values."""
    y: np.ndarray
    """The metric, float (trials,)."""
    groups: list[Group]
    """The trials by value in order, or by quantile of a continuous parameter from low to high."""

    @property
    def explained(self) -> float:
        """Share of the metric's variance that lies between the groups (eta squared), NaN where it says nothing."""
        total = float(((self.y - self.y.mean()) ** 2).sum()) if len(self.y) else 0.0
        if len(self.y) < LEAST_TRIALS or not 1 < len(self.groups) < len(self.y) or total == 0:
            return float("nan")
        mean = float(self.y.mean())
        return sum(len(group.values) * (group.mean - mean) ** 2 for group in self.groups) / total

    @property
    def by_chance(self) -> float:
        """What `explained` would be on average if the parameter did nothing: (groups - 1) / (trials - 1)."""
        return (len(self.groups) - 1) / (len(self.y) - 1) if len(self.y) > 1 else float("nan")


def comparable_trials(study: StudyTables) -> Comparable:
    """Return the trials that came equally far.

    Where at least half of the trials with a result finished, it is these, by the best of their epochs. Else most were
    stopped early, and what is left is a choice of the good ones: all trials are then compared at one epoch, the last
    that half of them reached, by their best up to there; `epochs` is not judged there.
    """
    metric, board = study.metric, study.results
    finished = board[board["status"] == FINISHED]
    left = f"{len(study.board) - len(finished)} others are left out."
    if 2 * len(finished) >= len(board):
        told = f"Counted are the {len(finished)} trials that ran all of their epochs; {left}"
        return Comparable(trials=finished, keys=_varied(finished, study.keys), epoch=None, told=told)
    reached = study.history.groupby("trial")["epoch"].max().reindex(board["trial"]).fillna(0)
    epoch = int(reached.sort_values(ascending=False).iloc[(len(board) - 1) // 2])
    rows = study.history[study.history["epoch"] <= epoch].groupby("trial")[metric]
    at_epoch = (rows.max() if study.mode == "max" else rows.min()).dropna()
    far = set(reached[reached >= epoch].index) & set(at_epoch.index)
    counted = board[board["trial"].isin(far)]
    counted = counted.assign(**{metric: counted["trial"].map(at_epoch)})
    told = (
        f"Most trials were stopped early, so all are compared at epoch {epoch}, by their best up to there. Counted are "
        f"the {len(counted)} trials that came so far; {len(study.board) - len(counted)} others are left out. "
        "What learns fast looks better here than it may be in the end."
    )
    keys = [key for key in study.keys if key != "epochs"]
    if "epochs" in _varied(counted, study.keys):
        told += " Their number of epochs is not judged: at one epoch it says nothing."
    return Comparable(trials=counted, keys=_varied(counted, keys), epoch=epoch, told=told)


def effect_of(trials: pd.DataFrame, key: str, metric: str) -> Effect:
    """Return what a parameter did to the metric: groups by value, or by quantile where it is continuous."""
    if not is_continuous(trials[key]):
        return Effect(key=key, x=None, y=trials[metric].to_numpy(float), groups=_by_value(trials, key, metric))
    known = trials[trials[key].notna()]
    x, y = known[key].astype(float), known[metric].to_numpy(float)
    bins = max(2, min(BINS, len(x) // 3))
    # Ranks of equal values are equal: no value stands in two bins.
    place = np.minimum((x.rank().to_numpy() - 0.5) * bins / len(x), bins - 1).astype(int)
    groups = [
        Group(label=f"{shown_value(x[place == number].min())} … {shown_value(x[place == number].max())}", values=values)
        for number in range(bins)
        if len(values := y[place == number])
    ]
    return Effect(key=key, x=x.to_numpy(), y=y, groups=groups)


def importance(effects: Sequence[Effect], mode: str) -> pd.DataFrame:
    """Return the parameters by the share of variance that each explains alone, the greatest first.

    Columns: parameter, groups, trials, explained and by_chance (shares), best (the group of the best mean), best_mean.
    """
    rows = []
    for effect in effects:
        best = (max if mode == "max" else min)(effect.groups, key=lambda group: group.mean)
        kind = "quantile ranges" if effect.x is not None else "values"
        rows.append(
            {
                "parameter": effect.key,
                "groups": f"{len(effect.groups)} {kind}",
                "trials": len(effect.y),
                "explained": effect.explained,
                "by_chance": effect.by_chance,
                "best": best.label,
                "best_mean": best.mean,
            }
        )
    columns = ["parameter", "groups", "trials", "explained", "by_chance", "best", "best_mean"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values("explained", ascending=False, na_position="last", kind="stable", ignore_index=True)


def is_continuous(values: pd.Series) -> bool:
    """Return whether a parameter is a number that nearly every trial has another value of."""
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return False
    known = values.dropna()
    return known.nunique() > FEW_VALUES or 2 < known.nunique() == len(known)


def labels_of(values: pd.Series) -> tuple[pd.Series, list[str]]:
    """Return each trial's value as text, and the texts in order: numbers by size, words by the alphabet, none last."""
    known = values.dropna().drop_duplicates()
    numeric = pd.api.types.is_numeric_dtype(values)
    ordered = known.sort_values() if numeric else known.sort_values(key=lambda column: column.astype(str).str.lower())
    texts = list(dict.fromkeys(shown_value(value) for value in ordered))
    unset = OWN_DATASET if values.name == "dataset" else UNSET
    labels = pd.Series([unset if pd.isna(value) else shown_value(value) for value in values], index=values.index)
    return labels, [*texts, *([unset] if values.isna().any() and unset not in texts else [])]


def shown_value(value: object) -> str:
    """Return a parameter's value for reading."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _by_value(trials: pd.DataFrame, key: str, metric: str) -> list[Group]:
    labels, order = labels_of(trials[key])
    return [Group(label=label, values=trials.loc[labels == label, metric].to_numpy(float)) for label in order]


def _varied(trials: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if trials[key].nunique(dropna=False) > 1]
