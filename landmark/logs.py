"""Structured logs: a process of a run writes one JSON object a line, with its run, trial and rank, to stderr, where Ray keeps it."""

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
    """Each record as one JSON object: time (ISO 8601, UTC), level, event, host, pid, who writes, then the event's own fields."""

    def __init__(self, who: dict[str, Any]) -> None:
        super().__init__()
        self.who = {"host": socket.gethostname(), "pid": os.getpid(), **who}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **self.who}
        return json.dumps(line | getattr(record, "fields", {}), default=str)


def begin_log(run: str, trial: str, rank: int) -> None:
    """Write this process's events to stderr from now on, as those of one rank of a run, or of a study's trial.

    trial is empty for a run of its own. A process that goes on to another trial begins anew. Processes that nobody began
    a log for, a laptop's own, write none: what a person reads is printed.
    """
    for handler in [handler for handler in LOG.handlers if isinstance(handler.formatter, JsonLines)]:
        LOG.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines({"run": run, "trial": trial, "rank": rank}))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)


def log(event: str, **fields: Any) -> None:
    """Write an event with its fields; `begin_log` says where to."""
    LOG.info(event, extra={"fields": fields})
