"""Config of `landmark clean`: the detectors and their thresholds for dropping or relabeling an image."""

from dataclasses import dataclass, field
from typing import Literal

from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class QualityConfig:
    """Thresholds for degenerate images, which show almost nothing."""

    min_side: int = 16
    """Minimum short side of an image, pixels."""
    min_spread: float = 6.0
    """Minimum standard deviation of the gray values, 0 to 127."""
    min_entropy: float = 2.0
    """Minimum entropy of the gray values, 0 to 8 bits."""

    def __post_init__(self) -> None:
        require(self.min_side >= 1, f"quality.min_side is {self.min_side}; expected 1 or more")
        require(0 <= self.min_spread < 128, f"quality.min_spread is {self.min_spread}; expected 0 to 127")
        require(0 <= self.min_entropy <= 8, f"quality.min_entropy is {self.min_entropy}; expected 0 to 8")


@dataclass(kw_only=True, frozen=True)
class DuplicatesConfig:
    """Detection of duplicates of a photograph: re-encoded, resized, cropped or watermarked."""

    near: bool = True
    """Find near-duplicates in addition to exact duplicates."""
    neighbors: int = 12
    """Number of nearest embeddings that each image is compared with."""
    similarity: float = 0.75
    """Minimum cosine similarity of two embeddings to compare their images."""
    inliers: int = 12
    """Minimum number of keypoints that fit one shift, rotation and scaling. It maps one image onto the other."""
    correlation: float = 0.96
    """Minimum correlation of the pixels of two aligned images that are duplicates."""
    overlap: float = 0.5
    """Minimum fraction of the larger image that the other image covers."""

    def __post_init__(self) -> None:
        require(self.neighbors >= 1, f"duplicates.neighbors is {self.neighbors}; expected 1 or more")
        require(self.inliers >= 4, f"duplicates.inliers is {self.inliers}; expected 4 or more")
        for name in ("similarity", "correlation", "overlap"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"duplicates.{name} is {value}; expected 0 to 1")


@dataclass(kw_only=True, frozen=True)
class NoiseConfig:
    """Detection of label errors, and of distractors (non-landmark images) that carry a label."""

    folds: int = 5
    """Cross-validation folds for out-of-fold probabilities."""
    neighbors: int = 10
    """Number of nearest embeddings that vote on an image's class."""
    own: float = 0.1
    """Probability of an image's label, below which it may be a label error."""
    confidence: float = 0.4
    """Minimum probability of another class for a label error."""
    relabel: float = 0.6
    """Minimum probability of another class to replace a wrong label by it. Below it, the image is dropped."""
    distractor: float = 0.5
    """Minimum mean cosine with the nearest embeddings. An image below it is a distractor."""
    min_class_images: int = 8
    """Minimum images per class to look for label errors in it. In smaller classes, statistics do not distinguish an
    error from a rare view."""
    max_class_fraction: float = 0.5
    """Maximum fraction of a class that label errors and distractors may make up. If there are more, only the most
    certain ones are dropped or relabeled."""
    max_cells: int = 100_000_000
    """Maximum number of images times classes for the linear classifier. Above it, only the nearest embeddings give the
    probabilities, because the classifier would not fit in memory."""

    def __post_init__(self) -> None:
        require(self.folds >= 2, f"noise.folds is {self.folds}; expected 2 or more")
        require(self.neighbors >= 1, f"noise.neighbors is {self.neighbors}; expected 1 or more")
        for name in ("own", "confidence", "relabel"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"noise.{name} is {value}; expected 0 to 1")
        require(-1 <= self.distractor <= 1, f"noise.distractor is {self.distractor}; expected -1 to 1")
        require(self.min_class_images >= 2, f"noise.min_class_images is {self.min_class_images}; expected 2 or more")
        require(
            0 <= self.max_class_fraction <= 1,
            f"noise.max_class_fraction is {self.max_class_fraction}; expected 0 to 1",
        )


@dataclass(kw_only=True, frozen=True)
class CleanConfig:
    """Clean a dataset: write a filtered view of it, and an audit of each image that is dropped or relabeled."""

    dataset: str
    """Folder or URI of a packed or cleaned dataset. `landmark prepare` and `landmark clean` write these."""
    output: str
    """Folder or URI of the cleaned dataset. It lists the images that are kept and contains no pixels."""
    weights: str = "lite0"
    """Model for the embeddings, lite0 or a trained model. lite0 has ImageNet weights that are installed as a package.
    For a trained model, it is the folder or URI of a run or checkpoint."""
    image_size: int | None = None
    """Width and height at which images are embedded, pixels. [default: the model's]"""
    batch_size: int = 64
    """Images per batch when computing embeddings."""
    threads: int = 2
    """Threads that decode and compare images."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val")
    """Splits to search for label errors, distractors and degenerate images. Duplicates and unreadable images are found
    in all splits."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    min_images: int = 2
    """Minimum training images per class. Classes with fewer images are dropped."""
    max_drop_fraction: float = 0.5
    """Maximum fraction of the images that one detector may drop. Above it, nothing is written. 1 allows any
    fraction."""
    seed: int = 0
    """Seed of the cross-validation folds."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected 1 or more")
        require(self.threads >= 1, f"threads is {self.threads}; expected 1 or more")
        require(
            self.image_size is None or self.image_size >= 32, f"image_size is {self.image_size}; expected 32 or more"
        )
        require(self.min_images >= 0, f"min_images is {self.min_images}; expected 0 or more")
        require(
            0 < self.max_drop_fraction <= 1,
            f"max_drop_fraction is {self.max_drop_fraction}; expected above 0, up to 1",
        )
