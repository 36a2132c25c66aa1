"""Progress of long operations: a bar on a terminal, and lines with rate and remaining time in logs."""

import sys
import time
from collections.abc import Callable
from typing import Any

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Disable or enable progress output in this process."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Return whether progress output is disabled in this process."""
    return _quiet


class Progress:
    """Counts up to `total` with a bar on a terminal, or periodic lines elsewhere.

    sink: receives the lines instead of this process's stderr.
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
        self.enabled = enabled and (sink is not None or not _quiet)
        self.sink = sink
        self.terminal = sink is None and sys.stderr.isatty()
        self.interval = 0.5 if self.terminal else 10.0
        self.done = 0
        self.started = time.monotonic()
        self.shown = self.started + 1.0 - self.interval
        self._bar: Any = None

    def update(self, count: int, note: str = "") -> None:
        """Add `count` completed items. `note` is shown after the rate."""
        self.done += count
        now = time.monotonic()
        if self.enabled and now - self.shown >= self.interval and self.done < self.total:
            self.shown = now
            if self.sink is not None:
                self.sink(self.line(note))
            elif self.terminal:
                self._show_bar(note)
            else:
                print(self.line(note), file=sys.stderr, flush=True)

    def line(self, note: str = "") -> str:
        """Return the current progress line."""
        done = f"{self.done:,}/{self.total:,} {self.unit}"
        return ", ".join(filter(None, [f"{self.label}: {done}", *self._rate(), note]))

    def rate(self) -> float:
        """Return the average rate since the start, per second."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def clear(self) -> None:
        """Remove the bar from a terminal before other output."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self) -> tuple[str, str]:
        rate = self.rate()
        left = (self.total - self.done) / rate if rate else 0.0
        return f"{rate:,.0f}/s", f"{clock(left)} left"

    def _show_bar(self, note: str) -> None:
        from rich import progress  # takes 0.05 s, only for terminals
        from rich.console import Console

        if self._bar is None:
            columns = (
                "{task.description}",
                progress.BarColumn(),
                "{task.completed:,.0f}/{task.total:,.0f} {task.fields[text]}",
            )
            # Not refreshed by a thread. Other output between two updates must clear the bar first.
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
            self._bar.add_task(self.label, total=self.total, text="")
            self._bar.start()
        text = ", ".join(filter(None, [self.unit, *self._rate(), note]))
        self._bar.update(self._bar.task_ids[0], completed=self.done, text=text, refresh=True)


def clock(seconds: float) -> str:
    """Return a duration as 42s, 3m05s or 2h07m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
