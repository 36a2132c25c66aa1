"""Progress of anything that takes longer than two seconds: one line with rate and time left."""

import sys
import time
from collections.abc import Callable


class Progress:
    """Counts up to `total` and shows a line now and then: in place on a terminal, sparsely elsewhere.

    sink: takes the lines instead of this process's stderr.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "images",
        *,
        enabled: bool = True,
        sink: Callable[[str], object] | None = None,
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.enabled = enabled
        self.sink = sink
        self.terminal = sink is None and sys.stderr.isatty()
        self.interval = 1.0 if self.terminal else 10.0
        self.done = 0
        self.started = time.monotonic()
        self.shown = self.started + 1.0 - self.interval

    def update(self, count: int, note: str = "") -> None:
        """Count `count` more as done; `note` is shown behind the rate."""
        self.done += count
        now = time.monotonic()
        if self.enabled and now - self.shown >= self.interval and self.done < self.total:
            self.shown = now
            if self.sink is not None:
                self.sink(self.line(note))
                return
            end = "" if self.terminal else "\n"
            print(f"{self._clear()}{self.line(note)}", end=end, file=sys.stderr, flush=True)

    def line(self, note: str = "") -> str:
        """Return the line as it stands."""
        rate = self.rate()
        left = (self.total - self.done) / rate if rate else 0.0
        share = f"{self.done:,}/{self.total:,} {self.unit}"
        return ", ".join(filter(None, [f"{self.label}: {share}", f"{rate:,.0f}/s", f"{clock(left)} left", note]))

    def rate(self) -> float:
        """Return what was done a second so far."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def clear(self) -> None:
        """Remove the line from a terminal, before something else is printed."""
        if self.enabled and self.terminal:
            print(self._clear(), end="", file=sys.stderr, flush=True)

    def _clear(self) -> str:
        return "\r\033[K" if self.terminal else ""


def clock(seconds: float) -> str:
    """Return a duration as 42s, 3m05s or 2h07m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
