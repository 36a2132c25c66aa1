"""Figures over several seeds: the mean and, of two or more, the standard deviation. One number has none."""

import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, None of a single value; raises StatisticsError without values."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def shown(mean: float, deviation: float | None, form: str = ".1%") -> str:
    """Return a mean with its standard deviation as text, such as "57.8% ± 0.7%"; without one the mean only."""
    return f"{mean:{form}}" if deviation is None else f"{mean:{form}} ± {deviation:{form}}"
