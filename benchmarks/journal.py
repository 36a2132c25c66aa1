"""Reads the journal of a study while another process writes it, for the benchmark of kills."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any


class Ledger:
    """The trials of a study by the events of its journal, over all processes that ran it."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        self.proposed = {event["trial"] for event in events if event["event"] == "trial"}
        self.ended_at = {event["trial"]: float(event["at"]) for event in events if event["event"] == "ended"}
        self.last = {event["trial"]: event for event in events if event["event"] == "report"}
        """Each trial's last report."""

    @property
    def reports(self) -> int:
        """Number of epochs reported."""
        return sum(event["event"] == "report" for event in self.events)

    @property
    def ended(self) -> set[str]:
        """Trials that ended."""
        return set(self.ended_at)

    @property
    def unfinished(self) -> set[str]:
        """Trials that have reported and have not ended: they are running or paused."""
        return set(self.last) - self.ended

    def epoch_s(self) -> float:
        """Return the median seconds per epoch."""
        return statistics.median(float(event["row"]["epoch_seconds"]) for event in self.last.values())

    def trained_since(self, before: "Ledger") -> set[str]:
        """Return the trials that reported after an earlier reading."""
        return {event["trial"] for event in self.events[len(before.events) :] if event["event"] == "report"}

    def epochs_twice(self) -> int:
        """Return the number of reports that repeat an epoch.

        A trial that copied another trial's weights starts a new count.
        """
        seen: dict[str, set[int]] = defaultdict(set)
        twice = 0
        for event in self.events:
            if event["event"] == "exploit":
                seen[event["trial"]] = set()
            elif event["event"] == "report":
                epoch = int(event["row"]["epoch"])
                twice += epoch in seen[event["trial"]]
                seen[event["trial"]].add(epoch)
        return twice

    def epochs_cut(self, at: float, running: int) -> float:
        """Return the epochs between the last reports of the running trials and a unix time, summed over the trials.

        running: number of running trials. These are the trials with the newest reports. At most one epoch is counted
        each, because a trial that was just resumed had been paused before.
        """
        unfinished = sorted(
            (self.last[trial] for trial in self.unfinished), key=lambda event: -float(event["reported_at"])
        )
        return sum(
            min(1.0, (at - float(event["reported_at"])) / float(event["row"]["epoch_seconds"]))
            for event in unfinished[:running]
        )


def read_ledger(study: Path) -> Ledger:
    """Read the current journal of a study. The result is empty if there is no journal yet."""
    files = sorted((study / "journal").glob("*.jsonl"))
    return Ledger([json.loads(line) for file in files for line in file.read_text().splitlines()])
