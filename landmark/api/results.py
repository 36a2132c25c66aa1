"""What the functions of the Python API return."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landmark.storage import locate

if TYPE_CHECKING:
    import pandas as pd

    from landmark.api.dataset import Dataset
    from landmark.inference.model import Model


@dataclass(kw_only=True, frozen=True)
class PrepareResult:
    """A packed dataset."""

    uri: str
    """Folder or URI of the dataset."""
    images: dict[str, int]
    """Number of images per split."""
    classes: int
    """Number of classes."""
    rejects: dict[str, int]
    """Number of rejected images by reason."""

    def dataset(self) -> "Dataset":
        """Open the dataset."""
        from landmark.api.dataset import Dataset

        return Dataset(self.uri)


@dataclass(kw_only=True, frozen=True)
class TrainResult:
    """A finished run."""

    uri: str
    """Folder or URI of the run."""
    metrics: dict[str, float]
    """Metrics of the best epoch: val_top1, val_top5, val_macro_recall, val_loss and more."""
    epochs_run: int
    """Number of epochs trained, over all resumptions."""
    stopped_early: bool
    """Whether early stopping ended the run."""
    seconds: float
    """Wall time of this call."""

    def model(self) -> "Model":
        """Load the best model of the run."""
        return _load(self.uri)


@dataclass(kw_only=True, frozen=True)
class TuneResult:
    """A finished study."""

    uri: str
    """Folder or URI of the study."""
    best: dict[str, Any] | None
    """The best trial: its name, epoch, metrics, and results on the test split; None if there is none."""
    summary: dict[str, Any]
    """The content of study.json."""

    def leaderboard(self) -> "pd.DataFrame":
        """Return one row per trial, best first."""
        import io

        import pandas as pd

        return pd.read_csv(io.StringIO((locate(self.uri) / "leaderboard.csv").read_text()))

    def model(self) -> "Model":
        """Load the best model of the study."""
        return _load(self.uri)


@dataclass(kw_only=True, frozen=True)
class EvaluateResult:
    """An evaluation on one split."""

    uri: str
    """Folder or URI of the evaluation's files."""
    metrics: dict[str, Any]
    """All metrics, those of the baselines included: the content of metrics.json."""


@dataclass(kw_only=True, frozen=True)
class ReportResult:
    """A report."""

    page: str
    """Path or URI of the HTML page."""


def read_values(uri: str, name: str) -> dict[str, Any]:
    """Return the content of a JSON file of a run or study."""
    return json.loads((locate(uri) / name).read_text())


def _load(uri: str) -> "Model":
    from landmark.inference.model import load

    return load(uri)
