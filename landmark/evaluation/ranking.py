"""The order of a metric's values: which one is better, whatever the metric's direction, and where NaN and infinity stand."""

import math


def score(value: float, mode: str) -> float:
    """Return a number that is greater for a better value.

    mode: "max" or "min". A value that is not finite is the worst, -inf, in either mode: every choice of a best epoch,
    checkpoint or trial compares these scores, so that a run that diverged never wins.
    """
    if not math.isfinite(value):
        return -math.inf
    return value if mode == "max" else -value
