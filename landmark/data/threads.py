"""Thread pools with daemon threads, so that a hung call does not delay the end of its pool or of the process."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

GRACE_S = 3.0
"""Seconds that `close` waits for calls in progress."""

_Call = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class DaemonPool:
    """A thread pool that ends without its hung calls.

    ThreadPoolExecutor waits for all calls in progress when it or the process ends. A hung read would then delay an
    error by the full storage deadline. Here, the thread of a hung call is abandoned, and ends with its call or the
    process.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(
        self, call: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Future[Result]:
        """Call a function in the next free thread."""
        future: Future[Result] = Future()
        self._calls.put((future, call, arguments, named))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def _work(self) -> None:
        while True:
            try:
                item = self._calls.get_nowait()
            except queue.Empty:
                self._idle.release()
                item = self._calls.get()
            if item is None:
                return
            future, call, arguments, named = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(*arguments, **named))
                except BaseException as error:
                    future.set_exception(error)
            del item, future, call, arguments, named  # an idle thread must not keep a result alive

    def close(self) -> None:
        """Cancel the calls that have not started, and stop the threads. Threads whose call takes longer than GRACE_S
        are abandoned."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (item := self._calls.get_nowait()) is not None:
                    item[0].cancel()
        for _ in self._threads:
            self._calls.put(None)
        ends = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def __enter__(self) -> "DaemonPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
