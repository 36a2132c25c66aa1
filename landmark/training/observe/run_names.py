"""Names of runs and trials in metrics, logs and streams."""

from landmark.storage import Location

TRIALS = "trials"
"""Folder of the trials' runs, below a study."""


def names_of(run: Location) -> tuple[str, str]:
    """Return the names of run and trial, given a run's location. A trial is stored in its study's folder of trials."""
    parts = run.uri.rstrip("/").split("/")
    if len(parts) > 2 and parts[-2] == TRIALS:
        return parts[-3], parts[-1]
    return parts[-1], ""
