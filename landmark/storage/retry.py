"""Retries: storage operations are repeated after transient failures, and abandoned when they make no progress."""

import functools
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from landmark.storage.errors import NoResponse, TransientStorageError, endpoint, storage_error
from landmark.storage.uri import scheme_of

T = TypeVar("T")

DEADLINE_S = 90
"""Seconds without any data or response after which an operation fails. LANDMARK_STORAGE_DEADLINE_S overrides it."""
OUTAGE_S = 1800
"""Maximum outage of storage that this process has used before, seconds. LANDMARK_STORAGE_OUTAGE_S overrides it."""
MAX_PAUSE_S = 8
MAX_WORK_PAUSE_S = 60
LONG_WORK_S = 600
WARN_S = 15
"""Seconds of an outage before a warning is printed, once per outage."""


def deadline_s() -> float:
    """Return the seconds without any data or response after which an operation fails."""
    return float(os.environ.get("LANDMARK_STORAGE_DEADLINE_S", DEADLINE_S))


def outage_s() -> float:
    """Return the maximum outage of storage that responded before, seconds. If only the deadline is set, it is the
    deadline."""
    given = os.environ.get("LANDMARK_STORAGE_OUTAGE_S") or os.environ.get("LANDMARK_STORAGE_DEADLINE_S")
    return max(float(given or OUTAGE_S), deadline_s())


def retrying(uri: str, operation: Callable[[], T]) -> T:
    """Run a repeatable storage operation. Returns its result.

    Transient failures (throttling, a restarting server) are retried with exponential backoff, until the deadline after
    the first failure. If the same storage responded to this process before, retries continue for the maximum outage. An
    operation on object storage without a sign of life until the deadline (see `alive`) is such a failure, whatever its
    client's timeouts. Raises NotFound, PermanentStorageError or TransientStorageError.
    """
    outage = _Outage(uri)
    run = functools.partial(_watched, operation, deadline_s()) if scheme_of(uri) else operation
    while True:
        try:
            result = run()
        except OSError as error:
            outage.failed(error)
        else:
            outage.over()
            return result
        outage.pause()


def resuming(work: Callable[[], T], stopping: threading.Event | None = None) -> T | None:
    """Run resumable work, and run it again if storage fails for longer than its own retries. Returns its result.

    Processes that start during an outage fail early, so this function waits for the end of the outage. Raises
    TransientStorageError if the outage exceeds the maximum. stopping: ends the wait, and None is returned.
    """
    since, pause_s = 0.0, 1.0
    while True:
        begun = time.monotonic()
        try:
            return work()
        except TransientStorageError as error:
            now = time.monotonic()
            if not since or now - begun > max(
                outage_s(), LONG_WORK_S
            ):  # longer than an outage, so the previous outage had ended
                since, pause_s = now, 1.0
            if now + pause_s > since + outage_s():
                raise
            print(f"warning: {error}; retrying in {pause_s:.0f} s", file=sys.stderr, flush=True)
        if (stopping or threading.Event()).wait(pause_s):
            return None
        pause_s = min(2 * pause_s, MAX_WORK_PAUSE_S)


class _Outage:
    """Consecutive failures of one operation."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        scheme = scheme_of(uri)
        self.place = (scheme, endpoint() if scheme == "s3" else uri.split("/")[2] if scheme else "")
        self.since: float | None = None
        self.pause_s = 0.25
        self.warned = False

    def failed(self, error: OSError) -> None:
        """Return if a retry may succeed. Otherwise, raise the failure as a StorageError."""
        failure = storage_error(self.uri, error)
        if not isinstance(failure, TransientStorageError):
            _answered.add(self.place)
            raise failure from (None if isinstance(error, FileNotFoundError) else error)
        now = time.monotonic()
        if self.since is None:
            self.since = error.since if isinstance(error, NoResponse) else now
        patience = outage_s() if self.place in _answered else deadline_s()
        if now + self.pause_s > self.since + patience:
            raise failure from error
        if not self.warned and now - self.since > WARN_S:
            self.warned = True
            print(f"warning: {failure}; retrying for up to {patience / 60:.0f} min", file=sys.stderr, flush=True)

    def over(self) -> None:
        """Record that the storage responds."""
        _answered.add(self.place)

    def pause(self) -> None:
        """Wait, with exponential backoff."""
        time.sleep(self.pause_s * random.uniform(0.5, 1.0))
        self.pause_s = min(2 * self.pause_s, MAX_PAUSE_S)


_answered: set[tuple[str, str]] = set()
"""Scheme and endpoint of storage that responded to this process. An address that never responded fails earlier."""
_watch = threading.local()
_left_behind: list["Call"] = []


def alive() -> None:
    """Report progress of the current operation, which restarts its deadline."""
    if (call := current_call()) is not None:
        call.seen = time.monotonic()


def current_call() -> "Call | None":
    """Return the operation that this thread runs, so that other threads can report its progress."""
    return getattr(_watch, "call", None)


class Call(threading.Thread):
    """An operation in its own thread, which can be abandoned if it hangs."""

    def __init__(self, operation: Callable[[], Any]) -> None:
        super().__init__(name="landmark-storage", daemon=True)
        self.operation = operation
        self.seen = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Run the operation."""
        _watch.call = self
        try:
            self.result = self.operation()
        except BaseException as error:  # the waiting thread raises it again
            self.error = error


def _watched(operation: Callable[[], T], patience: float) -> T:
    """Run an operation, and abandon it after `patience` seconds without progress."""
    call = Call(operation)
    call.start()
    while call.is_alive():
        left = call.seen + patience - time.monotonic()
        if left <= 0:
            _left_behind.append(call)
            raise NoResponse(f"no response for {patience:g} s", since=call.seen)
        call.join(left)
    if call.error is not None:
        raise call.error
    return call.result


def hanging() -> bool:
    """Return whether an abandoned operation still hangs. The end of the process would wait for it."""
    return any(call.is_alive() for call in _left_behind)
