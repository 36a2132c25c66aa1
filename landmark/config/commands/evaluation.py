"""Configs of the commands that use a trained model: evaluate, index and predict."""

from dataclasses import dataclass, field
from typing import Literal

from landmark.config.commands.prepare import ClusterConfig, require_megapixels
from landmark.config.errors import require
from landmark.config.input import CacheOptions

NEIGHBORS = 5
"""Default number of nearest images that vote."""


@dataclass(kw_only=True, frozen=True)
class InferenceConfig(CacheOptions):
    """A model, and the resources for its inference."""

    run: str
    """Folder or URI of a run, a study (its best model) or a checkpoint."""
    gallery: str | None = None
    """Folder or URI of the k-NN gallery. [default: gallery in the folder of the run]"""
    replicas: int | None = None
    """Number of replicas of the model that run at the same time. They are Ray Data actors. [default: one per GPU of the
    cluster, else one in this process]"""
    cpus: float = 1.0
    """CPUs that each replica reserves."""
    batch_size: int = 128
    """Images per batch, for each replica."""
    corrupt: Literal["stop", "skip"] = "stop"
    """Handling of a missing or corrupt shard. stop ends with an error. skip continues without its images and reports
    their number as lost_images."""
    max_megapixels: int | None = None
    """Maximum size of an image file that is decoded, millions of pixels. Larger image files of a folder are skipped.
    [default: 100]"""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.max_megapixels is not None:
            require_megapixels("max_megapixels", self.max_megapixels)
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected 1 or more")
        require(self.replicas is None or self.replicas >= 1, f"replicas is {self.replicas}; expected 1 or more")
        require(self.cpus > 0, f"cpus is {self.cpus}; expected above 0")
        self.check_cache()


@dataclass(kw_only=True, frozen=True)
class EvaluateConfig(InferenceConfig):
    """Evaluate a model on a split, compared with its trivial baselines or with a second model."""

    by: Literal["classifier", "knn", "both"] = "classifier"
    """How classes are predicted, by the classifier or nearest images (k-NN). knn uses the nearest training
    images, and includes classes that were added to the gallery. both reports the classifier and k-NN next to each
    other."""
    neighbors: int | None = None
    """Number of nearest images that vote on the class (k-NN). [default: 5]"""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation. flip averages over each image and its mirror image, which takes twice the time. It requires by
    classifier."""
    against: str | None = None
    """Second run, study or checkpoint to compare on the same images. The comparison uses McNemar's test and a paired
    bootstrap. [default: none]"""
    dataset: str | None = None
    """Folder or URI of a packed dataset. [default: the dataset that the model was trained on]"""
    split: Literal["train", "val", "test"] = "test"
    """Split whose images are evaluated."""
    distractors: str | None = None
    """Folder or packed dataset of distractors (non-landmark images). The folder may have any structure. GAP and the
    rejection metrics include these images. [default: none]"""
    output: str | None = None
    """Folder or URI for the results. With --by knn, the default is evaluation-SPLIT-knn. [default:
    evaluation-SPLIT in the folder of the run]"""
    topk: tuple[int, ...] = (1, 5, 10)
    """Values of k for top-k accuracy. A top-k prediction is correct if it includes the label."""
    bootstrap: int = 1000
    """Number of bootstrap replicates for the 95% intervals, 0 for no intervals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.topk) and all(k >= 1 for k in self.topk), f"topk is {self.topk}; expected numbers of 1 or more"
        )
        require(
            self.max_megapixels is None or self.distractors is not None,
            "max_megapixels applies only to a folder of distractors; add --distractors, or remove max_megapixels",
        )
        require(self.bootstrap >= 0, f"bootstrap is {self.bootstrap}; expected 0 or more")
        _check_knn(self.by, self.gallery, self.neighbors)
        _check_tta(self.by, self.tta)


@dataclass(kw_only=True, frozen=True)
class IndexConfig(InferenceConfig):
    """Build the k-NN gallery of a model from its training images, or add images and new classes to it."""

    add: str | None = None
    """Images to add to the gallery, as a folder or a packed dataset. The folder contains one folder per class. k-NN
    then also predicts the new classes, without training. Images that the gallery already has are skipped. [default:
    none]"""
    dataset: str | None = None
    """Folder or URI of the packed dataset for a new gallery. [default: the dataset that the model was trained on]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_megapixels is None or self.add is not None,
            "max_megapixels applies only to a folder of images to add; add --add, or remove max_megapixels",
        )


@dataclass(kw_only=True, frozen=True)
class PredictConfig(InferenceConfig):
    """Write a model's top-k predictions for images, and their embeddings."""

    images: tuple[str, ...]
    """Images, folders, URIs, a packed dataset, or - for one image on stdin. Folders include their subfolders."""
    output: str | None = None
    """Folder or URI for predictions.parquet (or .csv) and embeddings.parquet. [default: print the predictions]"""
    split: Literal["train", "val", "test"] = "test"
    """Split of a packed dataset."""
    by: Literal["classifier", "knn"] = "classifier"
    """How classes are predicted, by the classifier or nearest images (k-NN). knn uses the nearest images of the
    gallery, and includes classes that were added to it."""
    neighbors: int | None = None
    """Number of nearest images that vote on the class (k-NN). [default: 5]"""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation. flip averages over each image and its mirror image, which takes twice the time. It requires by
    classifier."""
    top_k: int = 5
    """Predicted classes per image."""
    reject: float = 0.0
    """Score below which an image counts as one without a landmark. `landmark evaluate --distractors` reports a suitable
    score."""
    format: Literal["parquet", "csv"] = "parquet"
    """File format of the predictions."""
    embeddings: bool = True
    """Write the embeddings in addition to the predictions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_knn(self.by, self.gallery, self.neighbors)
        _check_tta(self.by, self.tta)
        require(self.top_k >= 1, f"top_k is {self.top_k}; expected 1 or more")
        require(0 <= self.reject <= 1, f"reject is {self.reject}; expected a score from 0 to 1")


def _check_knn(by: str, gallery: str | None, neighbors: int | None) -> None:
    """Raise ValueError for options of k-NN that do not apply or are out of range."""
    for name, value in (("gallery", gallery), ("neighbors", neighbors)):
        require(value is None or by != "classifier", f"{name} applies only to k-NN; add --by knn, or remove {name}")
    require(neighbors is None or neighbors >= 1, f"neighbors is {neighbors}; expected 1 or more")


def _check_tta(by: str, tta: str) -> None:
    """Raise ValueError for test-time augmentation of k-NN, whose gallery has none."""
    require(
        tta == "none" or by == "classifier",
        f"tta is {tta}, but by is {by}; the gallery has embeddings without it: remove --tta, or set by to classifier",
    )
