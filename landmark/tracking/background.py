"""A background queue for a tracker. The caller never waits for the tracker and never sees it fail."""

import collections
import sys
import threading
import time
from collections.abc import Callable

from landmark.config import UserError, mask_credentials

CAPACITY = 20_000
"""Maximum queued entries. When the queue is full, further entries that are not essential are dropped and counted."""
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
"""Seconds between two attempts while a tracker fails: the first pause, and the maximum after doubling."""
CLOSE_TIMEOUT_S = 60.0
"""Seconds without progress after which `close` abandons the rest."""
LASTING = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)
"""Errors that a retry cannot fix."""

Say = Callable[[str], object]


def passes(error: Exception) -> bool:
    """Return whether a retry may succeed. Otherwise, the entry is dropped."""
    return not isinstance(error, LASTING)


def print_on_stderr(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Background:
    """Runs entries in their order. A failing entry is retried while the others wait. The start and end of each outage
    are reported once."""

    def __init__(
        self,
        name: str,
        *,
        say: Say = print_on_stderr,
        passes: Callable[[Exception], bool] = passes,
        capacity: int = CAPACITY,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """name: the tracker, for messages. say: receives single lines, called from the thread and from `close`."""
        self.name = name
        self.say = say
        self.passes = passes
        self.capacity = capacity
        self.first_pause_s = first_pause_s
        self.dropped = 0
        """Number of entries that did not fit, or that a retry cannot fix."""
        self._entries: collections.deque[Callable[[], None]] = collections.deque()
        self._changed = threading.Condition()
        self._closing = False
        self._moved_at = time.monotonic()
        self._skipped = False
        self._thread = threading.Thread(target=self._work, name=f"landmark-{name}", daemon=True)

    def add(self, entry: Callable[[], None], *, essential: bool = False) -> None:
        """Queue an entry. essential: keep it even when the queue is full."""
        with self._changed:
            if self._thread.ident is None:
                self._thread.start()
            if self._closing or (not essential and len(self._entries) >= self.capacity):
                self.dropped += 1
                return
            self._entries.append(entry)
            self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait until the queue is empty, or until it makes no progress for `timeout_s`. Then report the missing
        entries.

        A failing tracker gets one more attempt.
        """
        with self._changed:
            if self._closing or self._thread.ident is None:
                return
            self._closing, self._moved_at = True, time.monotonic()
            self._changed.notify_all()
        while self._thread.is_alive() and time.monotonic() - self._moved_at < timeout_s:
            self._thread.join(0.1)
        missing = len(self._entries) + self.dropped
        if missing:
            self.say(
                f"warning: {self.name}: {missing} entries could not be written; the results on disk contain all of them"
            )

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            if not self._carry_out(entry):
                return
            self._moved_at = time.monotonic()
            self._entries.popleft()

    def _next(self) -> Callable[[], None] | None:
        """Return the oldest entry, waiting for one. None at the end. It stays in the queue until it is written."""
        with self._changed:
            while not self._entries:
                if self._closing:
                    return None
                self._changed.wait()
            return self._entries[0]

    def _carry_out(self, entry: Callable[[], None]) -> bool:
        """Run an entry until it succeeds or is dropped. Returns False if the tracker still fails at the end."""
        pause, down = self.first_pause_s, False
        while True:
            closing = self._closing
            try:
                entry()
            except Exception as error:
                if not self.passes(error):
                    self._skip(error)
                    return True
                if not down:
                    self.say(
                        f"warning: {self.name}: {describe_error(error)}; entries are queued until it works again, and training continues"
                    )
                if closing:
                    return False
                down = True
                self._pause(pause)
                pause = min(2 * pause, MAX_PAUSE_S)
            else:
                if down:
                    self.say(f"note: {self.name} works again; the queued entries are written")
                return True

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)

    def _skip(self, error: Exception) -> None:
        self.dropped += 1
        if not self._skipped:
            self._skipped = True
            self.say(f"warning: {self.name}: an entry was dropped: {describe_error(error)}")


def describe_error(error: Exception) -> str:
    """Return an error as one line."""
    text = mask_credentials(" ".join(str(error).split()))[:300]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
