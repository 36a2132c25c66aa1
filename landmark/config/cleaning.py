"""Config of `landmark.clean`: what each detector looks for, and from where on an image is dropped or relabelled."""

from dataclasses import dataclass, field
from typing import Literal

from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class QualityConfig:
    """Images that show next to nothing."""

    min_side: int = 16
    """Least short side, pixels."""
    min_spread: float = 6.0
    """Least standard deviation of the grey values, 0 to 127."""
    min_entropy: float = 2.0
    """Least entropy of the grey values, bits of 8."""

    def __post_init__(self) -> None:
        require(self.min_side >= 1, f"quality.min_side is {self.min_side}; expected 1 or more")
        require(0 <= self.min_spread < 128, f"quality.min_spread is {self.min_spread}; expected 0 to 127")
        require(0 <= self.min_entropy <= 8, f"quality.min_entropy is {self.min_entropy}; expected 0 to 8")


@dataclass(kw_only=True, frozen=True)
class DuplicatesConfig:
    """Copies of one photograph: re-encoded, resized, cropped, watermarked."""

    near: bool = True
    """Look for near-duplicates, besides exact ones."""
    neighbours: int = 12
    """Nearest embeddings of each image that are looked at."""
    similarity: float = 0.75
    """Least cosine of two embeddings for the images to be compared."""
    inliers: int = 12
    """Least key points that one shift, turn and scaling takes from one image to the other."""
    correlation: float = 0.96
    """Least correlation of the two images, laid on each other, to be copies."""
    overlap: float = 0.5
    """Least share of the larger image that the other one covers."""

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, f"duplicates.neighbours is {self.neighbours}; expected 1 or more")
        require(self.inliers >= 4, f"duplicates.inliers is {self.inliers}; expected 4 or more")
        for name in ("similarity", "correlation", "overlap"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"duplicates.{name} is {value}; expected 0 to 1")


@dataclass(kw_only=True, frozen=True)
class NoiseConfig:
    """Wrong labels, and pictures of nothing that carry one."""

    folds: int = 5
    """Parts of which each gets its probabilities from a classifier of the others."""
    neighbours: int = 10
    """Nearest embeddings that vote on an image's class."""
    own: float = 0.1
    """Probability of the class that an image carries, below which its label may be wrong."""
    confidence: float = 0.4
    """Least probability of another class for a label to be wrong."""
    relabel: float = 0.6
    """Least probability of another class for a wrong label to be replaced by it; below, the image is dropped."""
    distractor: float = 0.5
    """Greatest mean cosine with the nearest embeddings of a picture of nothing."""
    min_class_images: int = 8
    """Minimum images per class for label errors to be sought in it: of fewer no statistics tell an error from a rare view."""
    max_class_fraction: float = 0.5
    """Maximum fraction of a class's images that label errors and distractors may take; the most certain ones go."""
    max_cells: int = 100_000_000
    """Images times classes above which the neighbours alone give the probabilities: a linear classifier would not fit."""

    def __post_init__(self) -> None:
        require(self.folds >= 2, f"noise.folds is {self.folds}; expected 2 or more")
        require(self.neighbours >= 1, f"noise.neighbours is {self.neighbours}; expected 1 or more")
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
    """Clean a dataset: a selection of its images, and an audit of each one dropped or relabelled."""

    dataset: str
    """Folder or URI of a packed dataset, or of a cleaned one, as `landmark prepare` and `landmark clean` write them."""
    output: str
    """Folder or URI of the cleaned dataset: which images are kept, no pixels."""
    weights: str = "lite0"
    """What gives the embeddings: lite0 (ImageNet weights as a package), or the folder or URI of a run or checkpoint."""
    image_size: int | None = None
    """Width and height at which images are embedded, pixels; empty: the network's own."""
    batch_size: int = 64
    """Images that are embedded at a time."""
    threads: int = 2
    """Threads that decode images and compare them."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val")
    """Splits in which wrong labels, pictures of nothing and degenerate images are sought; copies and unreadable images are in all."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    min_images: int = 2
    """Training images below which a class is dropped."""
    max_drop_fraction: float = 0.5
    """Maximum fraction of the images that one detector may drop: above, nothing is written. 1 allows any fraction."""
    seed: int = 0
    """Seed of the folds."""

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
