"""Configs of the verbs that use a trained model: evaluate, index, predict."""

from dataclasses import dataclass, field
from typing import Literal

from landmark.config.dataset import ClusterConfig, require_megapixels
from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class InferenceConfig:
    """A model, and what infers with it."""

    checkpoint: str
    """Folder or URI of a run, a study (its best model) or a checkpoint."""
    gallery: str | None = None
    """Folder or URI of the index of embeddings that neighbours are looked for in; empty: gallery in the folder of the checkpoint."""
    replicas: int | None = None
    """Copies of the model that infer at a time, as Ray Data actors; empty: one a GPU of the cluster, else one in this process."""
    cpus: float = 1.0
    """CPUs that a replica reserves."""
    batch_size: int = 128
    """Images a step."""
    damaged: Literal["stop", "skip"] = "stop"
    """What a missing or damaged shard does: end with an error, or be skipped, its images told as lost_images."""
    max_megapixels: int | None = None
    """Largest image file of a folder that is decoded, millions of pixels; a larger one is left out. [default: 100]"""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.max_megapixels is not None:
            require_megapixels("max_megapixels", self.max_megapixels)
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected 1 or more")
        require(self.replicas is None or self.replicas >= 1, f"replicas is {self.replicas}; expected 1 or more")
        require(self.cpus > 0, f"cpus is {self.cpus}; expected above 0")


@dataclass(kw_only=True, frozen=True)
class EvaluateConfig(InferenceConfig):
    """Evaluate a model on a split, beside its trivial baselines, or beside another model."""

    by: Literal["classifier", "neighbours", "both"] = "classifier"
    """What guesses the classes: the model's classifier; or the training images that are nearest by its embeddings, which knows classes
    added to the gallery too; both: the classifier, and the neighbours beside it."""
    neighbours: int = 5
    """Nearest images that vote for their classes."""
    against: str | None = None
    """Folder or URI of another one: both on the same images, who is right where the other is wrong, and whether that may be chance."""
    dataset: str | None = None
    """Folder or URI of a packed dataset; empty: the one the model was trained on."""
    split: Literal["train", "val", "test"] = "test"
    """Which split's images."""
    distractors: str | None = None
    """Folder of images that show no landmark (any format), or a packed dataset of such: GAP and rejection count them besides."""
    output: str | None = None
    """Folder or URI for the results; empty: evaluation-<split> in the folder of the checkpoint (evaluation-<split>-neighbours by
    neighbours alone)."""
    topk: tuple[int, ...] = (1, 5, 10)
    """An answer counts as right when the label is among the k best guesses."""
    bootstrap: int = 1000
    """Resamples of the images that the 95 % intervals are made of; 0: no intervals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.topk) and all(k >= 1 for k in self.topk), f"topk is {self.topk}; expected numbers of 1 or more"
        )
        require(
            self.max_megapixels is None or self.distractors is not None,
            "max_megapixels applies to a folder of distractors; give --distractors, or leave it out",
        )
        require(self.bootstrap >= 0, f"bootstrap is {self.bootstrap}; expected 0 or more")
        require(self.neighbours >= 1, f"neighbours is {self.neighbours}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class IndexConfig(InferenceConfig):
    """Make the gallery of a model: an index of its training images by their embeddings; or add images to it, also of new classes."""

    add: str | None = None
    """Folder with one folder a class (any format), or a packed dataset: its images join the gallery, and its classes those that
    neighbours know. Nothing is trained; images that are there already are left out."""
    dataset: str | None = None
    """Folder or URI of the packed dataset that a gallery that is not there yet is made of; empty: the one the model was trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_megapixels is None or self.add is not None,
            "max_megapixels applies to a folder of images to add; give --add, or leave it out",
        )


@dataclass(kw_only=True, frozen=True)
class PredictConfig(InferenceConfig):
    """Write a model's guesses for images, and their embeddings."""

    images: str
    """Folder or URI of images (any format, those in folders below too), one image, or a packed dataset."""
    output: str
    """Folder or URI for predictions.parquet (or .csv) and embeddings.parquet."""
    split: Literal["train", "val", "test"] = "test"
    """Which split of a packed dataset."""
    by: Literal["classifier", "neighbours"] = "classifier"
    """What guesses the classes: the model's classifier, or the gallery's images that are nearest, which knows classes added to it."""
    neighbours: int = 5
    """Nearest images that vote for their classes."""
    guesses: int = 5
    """Best guesses of an image that are written."""
    reject: float = 0.0
    """Score below which an image counts as one without a landmark; `landmark evaluate --distractors` tells a good one."""
    format: Literal["parquet", "csv"] = "parquet"
    """How predictions are written."""
    embeddings: bool = True
    """Write the embeddings too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("neighbours", "guesses"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected 1 or more")
        require(0 <= self.reject <= 1, f"reject is {self.reject}; expected a score from 0 to 1")
