"""The journal of a study: every event of its trials in their order, so that another driver process can go on."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from landmark.config import UserError
from landmark.storage import Location, NotFound, TransientStorageError

FOLDER = "journal"
WHERE = "where"
"""Key of an event that is read: its file and line."""
HINT = "delete that line, or start a study of another --name"
SEGMENT_EVENTS = 400
"""Events of a file: it is written whole again for each few new ones, as object storage wants it."""
INTERVAL_S = 1.0
"""Seconds between two writes: what a killed driver forgets, and its trials' checkpoints tell."""


class Journal:
    """Appends events as JSON lines under `<study>/journal`; one process writes at a time."""

    def __init__(self, study: Location, lost: Callable[[], bool] = lambda: False) -> None:
        """lost: whether another process has taken the study over; nothing more is written then."""
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
        """Yield all events that earlier processes wrote, oldest first, each with its file and line as `WHERE`.

        Raises UserError for a line that is no event.
        """
        for name in self._names():
            for number, line in enumerate((self.folder / name).read_bytes().splitlines(), 1):
                where = f"{self.folder / name}: line {number}"
                try:
                    event = json.loads(line)
                except ValueError as error:  # of JSON, or of UTF-8
                    raise UserError(f"{where} is no JSON ({error}); {HINT}") from None
                if not isinstance(event, dict):
                    raise UserError(f"{where} is no event of a study but {line[:40].decode()}; {HINT}")
                yield {**event, WHERE: where}

    def add(self, event: str, **values: Any) -> None:
        """Note an event; `flush` writes it."""
        if len(self._lines) >= SEGMENT_EVENTS:
            self.flush()
            if not self._unwritten:
                self.number, self._lines = self.number + 1, []
        self._lines.append(json.dumps({"event": event, "at": round(time.time(), 3), **values}))
        self._unwritten = True

    def flush(self, *, due: bool = False, final: bool = False) -> None:
        """Write what was noted; due: only when the last time is a while ago.

        While storage is unavailable the events are kept for the next time: Ray Tune calls this, and an error would end the
        study. final: raises TransientStorageError then.
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
            print(f"warning: {error}; events of the study are kept until it works again", file=sys.stderr, flush=True)
        else:
            self._unwritten = False
        self._written_at = time.monotonic()


def _number(name: str) -> int:
    return int(name.split(".")[0]) if name.split(".")[0].isdigit() else 0
