"""Retries: an operation on storage is repeated while its failures may pass, and given up when nothing moves."""

import functools
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from landmark.storage.errors import Unanswered, passes, storage_error

T = TypeVar("T")

DEADLINE_S = 90
"""Seconds for which object storage may fail or not answer before that is an error; LANDMARK_STORAGE_DEADLINE_S overrides it."""
LONGEST_PAUSE_S = 8


def retrying(uri: str, operation: Callable[[], T]) -> T:
    """Run an operation on storage that may be repeated; returns its result.

    Failures that pass (throttling, a server that restarts) are tried again, with growing pauses, until the
    deadline after the first one. An operation on object storage that gives no sign of life for as long (see `alive`)
    is given up, whatever its client's own time-outs. Raises NotFound, PermanentStorageError or TransientStorageError.
    """
    patience = float(os.environ.get("LANDMARK_STORAGE_DEADLINE_S", DEADLINE_S))
    run = operation if urlsplit(uri).scheme in ("", "file") else functools.partial(_watched, operation, patience)
    deadline, pause = None, 0.25
    while True:
        try:
            return run()
        except FileNotFoundError as error:
            raise storage_error(uri, error) from None
        except OSError as error:
            now = time.monotonic()
            deadline = now + patience if deadline is None else deadline
            if not passes(error) or now + pause > deadline:
                raise storage_error(uri, error) from error
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_S)


_watch = threading.local()
_left_behind: list["_Call"] = []


def alive() -> None:
    """Say that the operation under way got something done: its deadline counts from now."""
    if (call := getattr(_watch, "call", None)) is not None:
        call.seen = time.monotonic()


class _Call(threading.Thread):
    """An operation in a thread of its own, so that it can be left behind when it hangs."""

    def __init__(self, operation: Callable[[], Any]) -> None:
        super().__init__(name="landmark-storage", daemon=True)
        self.operation = operation
        self.seen = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        _watch.call = self
        try:
            self.result = self.operation()
        except BaseException as error:  # raised again by the thread that waits
            self.error = error


def _watched(operation: Callable[[], T], patience: float) -> T:
    """Run an operation, but give it up after `patience` seconds without a sign of life."""
    call = _Call(operation)
    call.start()
    while call.is_alive():
        left = call.seen + patience - time.monotonic()
        if left <= 0:
            _left_behind.append(call)
            raise Unanswered(f"no answer for {patience:g} s")
        call.join(left)
    if call.error is not None:
        raise call.error
    return call.result


def hanging() -> bool:
    """Return whether an operation that was given up still hangs; the end of the process would wait for it."""
    return any(call.is_alive() for call in _left_behind)
