"""The journal of a study: all events of its trials in order, from which another driver process resumes."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from landmark.config import UserError
from landmark.storage import Location, NotFound, TransientStorageError

FOLDER = "journal"
WHERE = "where"
"""Key of an event that was read, with its file and line."""
HINT = "delete that line, or start a study with another --name"
SEGMENT_EVENTS = 400
"""Events per file. Each flush rewrites the whole file, because object storage cannot append."""
INTERVAL_S = 1.0
"""Seconds between two writes. A killed driver loses these events; they are restored from the trials' checkpoints."""


class Journal:
    """Appends events as JSON lines under `<study>/journal`; one process writes at a time."""

    def __init__(self, study: Location, lost: Callable[[], bool] = lambda: False) -> None:
        """lost: returns whether another process has taken the study over; the journal then writes nothing."""
        self.lost = lost
        self.folder = study / FOLDER
        self.number = max((_number(name) for name in self._names()), default=0) + 1
        self._lines: list[str] = []
        self._unwritten = False
        self._written_at = 0.0

    def _names(self) -> list[str]:
        try:
            return [name for name in self.folder.names() if name.endswith(".jsonl")]
        except NotFound:
            return []

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield all events that earlier processes wrote, oldest first, each with its file and line under `WHERE`.

        Raises UserError for a line that is not an event.
        """
        for name in self._names():
            for number, line in enumerate((self.folder / name).read_bytes().splitlines(), 1):
                where = f"{self.folder / name}: line {number}"
                try:
                    event = json.loads(line)
                except ValueError as error:  # invalid JSON or UTF-8
                    raise UserError(f"{where} is not valid JSON ({error}); {HINT}") from None
                if not isinstance(event, dict):
                    raise UserError(f"{where} is not an event of a study but {line[:40].decode()}; {HINT}")
                yield {**event, WHERE: where}

    def add(self, event: str, **values: Any) -> None:
        """Add an event; `flush` writes it."""
        if len(self._lines) >= SEGMENT_EVENTS:
            self.flush()
            if not self._unwritten:
                self.number, self._lines = self.number + 1, []
        self._lines.append(json.dumps({"event": event, "at": round(time.time(), 3), **values}))
        self._unwritten = True

    def flush(self, *, due: bool = False, final: bool = False) -> None:
        """Write the events. due: only if INTERVAL_S has passed since the last write.

        While storage is unavailable, the events are kept for the next write: Ray Tune calls this method, and an error would
        end the study. final: raise TransientStorageError in that case.
        """
        if not self._unwritten or (due and time.monotonic() - self._written_at < INTERVAL_S):
            return
        if self.lost():
            return
        try:
            (self.folder / f"{self.number:05d}.jsonl").write_text("\n".join(self._lines) + "\n")
        except TransientStorageError as error:
            if final:
                raise
            print(
                f"warning: {error}; the study keeps its events until storage works again", file=sys.stderr, flush=True
            )
        else:
            self._unwritten = False
        self._written_at = time.monotonic()


def _number(name: str) -> int:
    return int(name.split(".")[0]) if name.split(".")[0].isdigit() else 0
