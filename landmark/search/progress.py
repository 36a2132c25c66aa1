"""The live table of a running study."""

import collections
import sys
import time
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from landmark.progress import clock, is_quiet
from landmark.search.state.state import StudyState, TrialState
from landmark.table import aligned, shown_metric, shown_value

SHOWN_TRIALS = 24
TERMINAL_INTERVAL_S = 2.0
LOG_INTERVAL_S = 20.0


class LiveTable(Callback):
    """Prints the trials to stderr periodically: in place on a terminal, else less often and only after changes."""

    def __init__(self, name: str, record: StudyState, metric: str, mode: str, total: int) -> None:
        self.name = name
        self.total = total
        self.record = record
        self.metric = metric
        self.mode = mode
        self.terminal = sys.stderr.isatty()
        self.interval = TERMINAL_INTERVAL_S if self.terminal else LOG_INTERVAL_S
        self.printed_at = time.monotonic() + TERMINAL_INTERVAL_S - self.interval
        self.printed_lines = 0
        self.printed = ""
        self._lines: collections.deque[str] = collections.deque()

    def say(self, line: str) -> None:
        """Queue a line to be printed above the table; thread-safe."""
        self._lines.append(line)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Print queued lines at once, and the table when its interval has passed."""
        if self._lines:
            self.clear()
        if time.monotonic() - self.printed_at >= self.interval:
            self.print()

    def print(self) -> None:
        """Print the current table, unless nothing has changed."""
        self.printed_at = time.monotonic()
        table = self.table()
        if is_quiet() or (not self.terminal and table == self.printed):
            return
        self.printed = table
        text = f"{self.headline()}\n{table}".rstrip()
        self.clear()
        print(text, file=sys.stderr, flush=True)
        self.printed_lines = text.count("\n") + 1

    def clear(self) -> None:
        """Remove the table from the terminal, so that a new table or the leaderboard can replace it; print queued lines."""
        if self.terminal and self.printed_lines:
            print(f"\033[{self.printed_lines}F\033[J", end="", file=sys.stderr, flush=True)
        self.printed_lines = 0
        while self._lines:
            print(self._lines.popleft(), file=sys.stderr, flush=True)

    def headline(self) -> str:
        """Return one line with the progress, the elapsed time and the maximum remaining time."""
        record, counts = self.record, self.record.counts()
        trials = list(record.trials.values())
        known = sum(trial.plan.recipe.epochs for trial in trials)
        planned = round(known / len(trials) * self.total) if trials else 0
        ended = [trial for trial in trials if trial.state == "ended"]
        left = planned - sum(t.plan.recipe.epochs if t.state == "ended" else t.epochs_run for t in trials)
        elapsed = record.seconds_before + time.monotonic() - record.started
        stopped = sum(trial.status() == "stopped early" for trial in ended)
        rest = f", at most {clock(left * elapsed / record.epochs_run)} left" if record.epochs_run and left else ""
        return (
            f"{self.name}: {len(ended)}/{self.total} trials ended ({stopped} stopped early, "
            f"{counts['failed']} failed), {record.epochs_run} of {planned} epochs, {clock(elapsed)}{rest}"
        )

    def table(self) -> str:
        """Return one row per started trial, up to SHOWN_TRIALS: running trials first, then the latest to end."""
        order = {"running": 0, "paused": 1, "waiting": 1, "ended": 2}
        started = [trial for trial in self.record.trials.values() if trial.state != "waiting" or trial.rows]
        started.sort(key=lambda trial: (order[trial.state], -(trial.last_report_at or 0)))
        shown = started[:SHOWN_TRIALS]
        if not shown:
            return ""
        shown.sort(key=lambda trial: trial.plan.name)
        keys = list(shown[0].plan.parameters)
        header = ["trial", *keys, "state", "epoch", self.metric, "best"]
        more = f"\n  … and {len(started) - len(shown)} more" if len(started) > len(shown) else ""
        return aligned([header, *(self._row(trial, keys) for trial in shown)]) + more

    def _row(self, trial: TrialState, keys: list[str]) -> list[str]:
        state = trial.status() if trial.state == "ended" else trial.state
        if state == "not started":
            state = "stopped early"
        last = trial.rows.get(trial.epochs_run, {}).get(self.metric)
        best = trial.best_epochs(self.metric, self.mode)
        return [
            trial.plan.name.split("-", 1)[0],
            *(shown_value(trial.plan.parameters[key]) for key in keys),
            state,
            f"{trial.epochs_run}/{trial.plan.recipe.epochs}",
            shown_metric(self.metric, last),
            shown_metric(self.metric, trial.rows[best[0]][self.metric] if best else None),
        ]
