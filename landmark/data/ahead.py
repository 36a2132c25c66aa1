"""Running ahead: calls under way whose results come in the order of what they were called with."""

import collections
from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Pending(Protocol[Result_co]):
    """A call under way, such as a Future."""

    def result(self) -> Result_co:
        """Wait for the call; returns its result or raises its error."""

    def cancel(self) -> object:
        """Say that nobody waits for it."""


def run_ahead(
    submit: Callable[[Item], Pending[Result]], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """Yield the results of submit(item) in order, with up to `ahead` calls under way beside the one waited for."""
    pending: collections.deque[Pending[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(submit(item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for call in pending:
            call.cancel()
