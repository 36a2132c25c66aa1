"""The record of a run: one row an epoch in history.csv, and TensorBoard events."""

import csv
import io
import tempfile
from pathlib import Path

from tensorboardX import SummaryWriter

from landmark.storage import Location


class Recorder:
    """Writes a run's metrics; a resumed run goes on in the same file, its repeated epochs replaced."""

    def __init__(self, run: Location, *, tensorboard: bool) -> None:
        self.run = run
        self.file = run / "history.csv"
        self.rows: list[dict[str, str]] = []
        if self.file.exists():
            self.rows = list(csv.DictReader(io.StringIO(self.file.read_text())))
        local = run.local_path()
        # TensorBoard's writer knows the local disk alone: for object storage its file is uploaded after every epoch.
        self._to_upload = tempfile.TemporaryDirectory() if tensorboard and local is None else None
        folder = Path(self._to_upload.name) if self._to_upload else (local or Path()) / "tensorboard"
        self.events = SummaryWriter(str(folder)) if tensorboard else None

    def add(self, metrics: dict[str, float]) -> None:
        """Write an epoch's metrics."""
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
            for key, value in metrics.items():
                self.events.add_scalar(key, value, epoch)
            self.events.flush()
            self._upload_events()

    def recover(self, metrics: dict[str, float]) -> None:
        """Write the epoch that a checkpoint ends, unless that was done: a process may die between the two."""
        if metrics and int(metrics["epoch"]) not in {int(row["epoch"]) for row in self.rows}:
            self.add(metrics)

    def _upload_events(self) -> None:
        if self._to_upload is None:
            return
        for path in Path(self._to_upload.name).iterdir():
            (self.run / "tensorboard" / path.name).upload(path)

    def close(self) -> None:
        """End the TensorBoard file."""
        if self.events is not None:
            self.events.close()
            self._upload_events()
        if self._to_upload is not None:
            self._to_upload.cleanup()
