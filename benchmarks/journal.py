"""What the journal of a study tells, for the benchmark of kills: read beside the process that writes it."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any


class Ledger:
    """The trials of a study by the events of its journal, over all processes that drove it."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        self.proposed = {event["trial"] for event in events if event["event"] == "trial"}
        self.ended_at = {event["trial"]: float(event["at"]) for event in events if event["event"] == "ended"}
        self.last = {event["trial"]: event for event in events if event["event"] == "report"}
        """Each trial's last report."""

    @property
    def reports(self) -> int:
        """Epochs reported."""
        return sum(event["event"] == "report" for event in self.events)

    @property
    def ended(self) -> set[str]:
        """Trials that are over."""
        return set(self.ended_at)

    @property
    def begun(self) -> set[str]:
        """Trials that have reported and are not over: they run, or wait for others."""
        return set(self.last) - self.ended

    def epoch_s(self) -> float:
        """Return the median seconds of an epoch."""
        return statistics.median(float(event["row"]["epoch_seconds"]) for event in self.last.values())

    def trained_since(self, before: "Ledger") -> set[str]:
        """Return the trials that have reported since an earlier reading."""
        return {event["trial"] for event in self.events[len(before.events) :] if event["event"] == "report"}

    def epochs_twice(self) -> int:
        """Return how many reports repeat an epoch; a trial that took over another's weights counts anew."""
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
        """Return how much of an epoch had passed, at a unix time, since the last reports of the trials that ran, over all of them.

        running: how many ran; of the trials that have begun these are the ones to report last. At most one epoch each:
        a trial that went on just then had stood still before.
        """
        begun = sorted((self.last[trial] for trial in self.begun), key=lambda event: -float(event["reported_at"]))
        return sum(
            min(1.0, (at - float(event["reported_at"])) / float(event["row"]["epoch_seconds"]))
            for event in begun[:running]
        )


def read_ledger(study: Path) -> Ledger:
    """Read a study's journal as it stands; empty where there is none yet."""
    files = sorted((study / "journal").glob("*.jsonl"))
    return Ledger([json.loads(line) for file in files for line in file.read_text().splitlines()])
