"""Ordered prefetching: run calls concurrently and yield their results in the order of the items."""

import collections
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
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


class Window(Protocol[Item_contra]):
    """Bounds the calls that are in progress or whose results wait for the consumer."""

    def started(self, item: Item_contra) -> None:
        """Count a call."""

    def taken(self, item: Item_contra, *, waited: bool) -> None:
        """Discount a call. waited: whether the consumer asked for its result before it was there."""

    def full(self) -> bool:
        """Return whether the consumer has to take a result before another call starts."""
        ...


class CallWindow:
    """A fixed number of calls in addition to the one that is waited for."""

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self._calls = 0

    def started(self, item: object) -> None:
        """Count a call."""
        self._calls += 1

    def taken(self, item: object, *, waited: bool) -> None:
        """Discount a call."""
        self._calls -= 1

    def full(self) -> bool:
        """Return whether more than `ahead` calls are counted."""
        return self._calls > self.ahead


class ByteWindow(Generic[Item]):
    """As many bytes in progress as keep the consumer from waiting, without a setting for the storage.

    The bound starts small and doubles each time the consumer waits, as the congestion window of TCP does in its slow
    start. Latency and bandwidth of the storage need not be known: the product of both is what the bound reaches.
    """

    def __init__(self, cost: Callable[[Item], int], *, start: int, most: int, calls: tuple[int, int]) -> None:
        """cost: bytes of an item. start, most: bytes. calls: minimum and maximum of calls, regardless of their bytes."""
        self.cost = cost
        self.bound = start
        self.most = most
        self.calls = calls
        self.bytes = 0
        self._calls = 0

    def started(self, item: Item) -> None:
        """Count a call."""
        self._calls += 1
        self.bytes += self.cost(item)

    def taken(self, item: Item, *, waited: bool) -> None:
        """Discount a call, and double the bound if the consumer waited."""
        self._calls -= 1
        self.bytes -= self.cost(item)
        if waited:
            self.bound = min(2 * self.bound, self.most)

    def full(self) -> bool:
        """Return whether the bound is reached."""
        least, most = self.calls
        return self._calls > most or (self._calls > least and self.bytes >= self.bound)


def ordered_prefetch(
    submit: Callable[[Item], Pending[Result]],
    items: Iterable[Item],
    window: Window[Item] | int,
    stop: threading.Event | None = None,
) -> Generator[Result, None, None]:
    """Yield the results of submit(item) in order. Further calls run while the caller waits for one.

    window: bounds these calls. A number is a fixed number of calls. stop: an event. If it is set, Stopped is raised
    instead of waiting for a call that may hang.
    """
    bound = CallWindow(window) if isinstance(window, int) else window
    pending: collections.deque[tuple[Item, Pending[Result]]] = collections.deque()

    def take() -> Result:
        item, call = pending.popleft()
        waited = not call.done()
        try:
            return _result(call, stop)
        finally:
            bound.taken(item, waited=waited)

    try:
        for item in items:
            pending.append((item, submit(item)))
            bound.started(item)
            while bound.full():
                yield take()
        while pending:
            yield take()
    finally:
        for _, call in pending:
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
