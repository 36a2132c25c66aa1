"""Running ahead: calls under way whose results come in the order of what they were called with."""

import collections
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

STOP_CHECK_S = 0.1
"""Seconds after which one who waits for a call looks whether to go on waiting."""


class Stopped(Exception):
    """The results of calls under way are not wanted any more."""


class Pending(Protocol[Result_co]):
    """A call under way, such as a Future."""

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait for the call, so many seconds at most; returns its result, raises its error, or TimeoutError."""

    def done(self) -> bool:
        """Return whether the call has ended."""

    def cancel(self) -> object:
        """Say that nobody waits for it."""


def run_ahead(
    submit: Callable[[Item], Pending[Result]],
    items: Iterable[Item],
    ahead: int,
    stop: threading.Event | None = None,
) -> Generator[Result, None, None]:
    """Yield the results of submit(item) in order, with up to `ahead` calls under way beside the one waited for.

    stop: raise Stopped when it is set, rather than wait for a call that may hang.
    """
    pending: collections.deque[Pending[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(submit(item))
            if len(pending) > ahead:
                yield _result(pending.popleft(), stop)
        while pending:
            yield _result(pending.popleft(), stop)
    finally:
        for call in pending:
            call.cancel()


def _result(call: Pending[Result], stop: threading.Event | None) -> Result:
    if stop is None:
        return call.result()
    while not stop.is_set():
        try:
            return call.result(STOP_CHECK_S)
        except TimeoutError:
            if call.done():
                return call.result()  # it has ended just now, or the error is its own
    call.cancel()
    raise Stopped
