"""Metrics of a run: history.csv with one row per epoch, and TensorBoard events."""

import csv
import io

from landmark.data.loading.bottleneck import current_names
from landmark.storage import Location
from landmark.tracking.background import Background, Say
from landmark.tracking.tensorboard import EventFile


class Recorder:
    """Writes a run's metrics. A resumed run appends to the same file and replaces repeated epochs."""

    def __init__(self, run: Location, *, tensorboard: bool, tell: Say = print) -> None:
        self.run = run
        self.file = run / "history.csv"
        self.rows: list[dict[str, str]] = []
        if self.file.exists():
            rows = csv.DictReader(io.StringIO(self.file.read_text()))
            self.rows = [current_names(row) for row in rows]
        self.events = EventFile(run / "tensorboard") if tensorboard else None
        self.background = Background("TensorBoard", say=tell)

    def add(self, metrics: dict[str, float]) -> None:
        """Write an epoch's metrics. Raises UserError if history.csv cannot be written, not for TensorBoard errors."""
        epoch = int(metrics["epoch"])
        self.rows = [row for row in self.rows if int(row["epoch"]) < epoch]
        self.rows.append({key: f"{value:.6g}" for key, value in metrics.items()})
        text = io.StringIO()
        names = dict.fromkeys([*metrics, *(key for row in self.rows for key in row)])
        writer = csv.DictWriter(text, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(self.rows)
        self.file.write_text(text.getvalue())
        if self.events is not None:
            values = dict(metrics)
            self.background.add(lambda: self._add_events(values, epoch))

    def _add_events(self, metrics: dict[str, float], epoch: int) -> None:
        assert self.events is not None
        for key, value in metrics.items():
            self.events.add_scalar(key, value, epoch)
        self.events.flush()

    def recover(self, metrics: dict[str, float]) -> None:
        """Write a checkpoint's last epoch if it is missing: a process can die between checkpoint and metrics."""
        if metrics and int(metrics["epoch"]) not in {int(row["epoch"]) for row in self.rows}:
            self.add(current_names(metrics))

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self.events is not None:
            self.background.add(self.events.close)
        self.background.close()
