"""Structured logs: each process of a run writes JSON lines with its run, trial and rank to stderr, which Ray stores."""

import datetime
import json
import logging
import os
import socket
import sys
from typing import Any

LOG = logging.getLogger("landmark")
LOG.addHandler(logging.NullHandler())
LOG.propagate = False


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time (ISO 8601, UTC), level, event, host, pid, run, trial and rank, then the
    event's fields."""

    def __init__(self, who: dict[str, Any]) -> None:
        super().__init__()
        self.who = {"host": socket.gethostname(), "pid": os.getpid(), **who}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **self.who}
        return json.dumps(line | getattr(record, "fields", {}), default=str)


def begin_log(run: str, trial: str, rank: int) -> None:
    """Write this process's events to stderr, labeled with run, trial and rank.

    trial is empty for a run outside a study. Call it again when the process starts another trial. Processes without
    this call, such as a local command, write no events, because the user sees printed messages.
    """
    for handler in [handler for handler in LOG.handlers if isinstance(handler.formatter, JsonLines)]:
        LOG.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines({"run": run, "trial": trial, "rank": rank}))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)


def log(event: str, **fields: Any) -> None:
    """Log an event with its fields. `begin_log` sets the destination."""
    LOG.info(event, extra={"fields": fields})
