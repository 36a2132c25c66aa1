"""Config of the command soup."""

from dataclasses import dataclass

from landmark.config.commands.training import require_name
from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class SoupConfig:
    """Combine trained models into one by the mean of their weights (greedy soup, Wortsman et al. 2022, arXiv 2203.05482), and
    compare it on the validation split with each model, their ensemble and test-time augmentation."""

    runs: tuple[str, ...]
    """Studies, runs or checkpoints: folders or URIs. A study stands for its best trials. All models have the same backbone, input and
    classes. Models that started at the same weights can be averaged, others usually cannot."""
    output: str = "runs"
    """Folder or URI in which the new model's folder is created."""
    name: str = "soup"
    """Name of the new model's folder."""
    max_models: int = 8
    """Maximum number of models."""
    dataset: str | None = None
    """Folder or URI of a packed dataset. [default: the dataset that the models were trained on]"""
    batch_size: int = 128
    """Images per batch."""

    def __post_init__(self) -> None:
        require_name(self.name)
        require(bool(self.runs), "runs is empty; give a study, or two or more runs")
        require(self.max_models >= 2, f"max_models is {self.max_models}; expected 2 or more")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected 1 or more")
