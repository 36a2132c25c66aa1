"""Ordered prefetching: run calls concurrently and yield their results in the order of the items."""

import collections
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

STOP_CHECK_S = 0.1
"""Interval for checking the stop event while waiting for a call, seconds."""


class Stopped(Exception):
    """The results of the outstanding calls are no longer needed."""


class Pending(Protocol[Result_co]):
    """An outstanding call, such as a Future."""

    def result(self, timeout: float | None = None) -> Result_co:
        """Wait up to `timeout` seconds. Returns the call's result, raises the call's error, or raises TimeoutError."""

    def done(self) -> bool:
        """Return whether the call has finished."""

    def cancel(self) -> object:
        """Cancel the call if it has not started."""


def ordered_prefetch(
    submit: Callable[[Item], Pending[Result]],
    items: Iterable[Item],
    ahead: int,
    stop: threading.Event | None = None,
) -> Generator[Result, None, None]:
    """Yield the results of submit(item) in order. Up to `ahead` further calls run while the caller waits for one.

    stop: an event. If it is set, Stopped is raised instead of waiting for a call that may hang.
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
                return call.result()  # it finished just now, or the error is the call's own
    call.cancel()
    raise Stopped
