"""Ranking of metric values in both directions, including NaN and infinity."""

import math


def score(value: float, mode: str) -> float:
    """Return a number that is higher for a better value.

    mode: "max" or "min". A value that is not finite has the worst score, -inf, in both modes. All selections of a best
    epoch, checkpoint or trial compare these scores, so that a diverged run never wins.
    """
    if not math.isfinite(value):
        return -math.inf
    return value if mode == "max" else -value
