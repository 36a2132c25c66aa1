"""Figures over several seeds: mean and, for two or more seeds, standard deviation."""

import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation (None for a single value).

    Raises StatisticsError without values.
    """
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def format_mean(mean: float, deviation: float | None, form: str = ".1%") -> str:
    """Return a mean with its standard deviation as text, such as "57.8% ± 0.7%", or only the mean."""
    return f"{mean:{form}}" if deviation is None else f"{mean:{form}} ± {deviation:{form}}"
