"""Train, search, evaluate and use landmark recognition models on a laptop or a Ray cluster.

>>> import landmark
>>> model = landmark.load("runs/train")  # doctest: +SKIP
>>> model.predict("photo.jpg")  # doctest: +SKIP
"""

import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landmark.api.calls import evaluate, prepare, report, train, tune
    from landmark.api.dataset import Dataset
    from landmark.config.errors import UserError
    from landmark.inference.model import Model, Neighbor, Prediction, load

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Model",
    "Neighbor",
    "Prediction",
    "UserError",
    "__version__",
    "evaluate",
    "load",
    "prepare",
    "report",
    "train",
    "tune",
]

_PLACES = {
    **dict.fromkeys(("evaluate", "prepare", "report", "train", "tune"), "landmark.api.calls"),
    **dict.fromkeys(("Model", "Neighbor", "Prediction", "load"), "landmark.inference.model"),
    "Dataset": "landmark.api.dataset",
    "UserError": "landmark.config.errors",
}

# torch and Ray leave half a million objects that live as long as the process: Python's default threshold goes through all
# of them again and again while more are imported, a fifth of the time until a command begins.
gc.set_threshold(50_000, 20, 100)


def __getattr__(name: str) -> Any:
    """Import a name of the API when it is used: torch and Ray take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module 'landmark' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
