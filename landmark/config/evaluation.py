"""Config of `landmark evaluate`."""

from dataclasses import dataclass, field
from typing import Literal

from landmark.config.dataset import ClusterConfig
from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class EvaluateConfig:
    """Evaluate a model on a split, beside its trivial baselines, or beside another model."""

    checkpoint: str
    """Folder or URI of a run, a study (its best model) or a checkpoint."""
    against: str | None = None
    """Folder or URI of another one: both on the same images, who is right where the other is wrong, and whether that may be chance."""
    dataset: str | None = None
    """Folder or URI of a packed dataset; empty: the one the model was trained on."""
    split: Literal["train", "val", "test"] = "test"
    """Which split's images."""
    distractors: str | None = None
    """Folder of images that show no landmark (any format), or a packed dataset of such: GAP and rejection count them besides."""
    output: str | None = None
    """Folder or URI for the results; empty: evaluation-<split> in the folder of the checkpoint."""
    topk: tuple[int, ...] = (1, 5, 10)
    """An answer counts as right when the label is among the k best guesses."""
    bootstrap: int = 1000
    """Resamples of the images that the 95 % intervals are made of; 0: no intervals."""
    neighbours: int = 0
    """Nearest training images, by the model's own embeddings, whose classes are a baseline beside the others; 0: none."""
    replicas: int | None = None
    """Copies of the model that infer at a time, as Ray Data actors; empty: one a GPU of the cluster, else one in this process."""
    cpus: float = 1.0
    """CPUs that a replica reserves."""
    batch_size: int = 128
    """Images a step."""
    damaged: Literal["stop", "skip"] = "stop"
    """What a missing or damaged shard does: end with an error, or be skipped, its images told as lost_images."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        require(
            bool(self.topk) and all(k >= 1 for k in self.topk), f"topk is {self.topk}; expected numbers of 1 or more"
        )
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected 1 or more")
        require(self.bootstrap >= 0, f"bootstrap is {self.bootstrap}; expected 0 or more")
        require(self.neighbours >= 0, f"neighbours is {self.neighbours}; expected 0 or more")
        require(self.replicas is None or self.replicas >= 1, f"replicas is {self.replicas}; expected 1 or more")
        require(self.cpus > 0, f"cpus is {self.cpus}; expected above 0")
