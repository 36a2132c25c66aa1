"""Config of the probe: a classifier that is fitted to features of the start weights."""

from dataclasses import dataclass
from typing import Literal

from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class ProbeConfig:
    """A classifier that is fitted to the features of the start weights (linear probing). The features of each image are
    computed once and stored. With model.freeze_backbone, the probe is the whole run. Otherwise, fine-tuning starts at
    it (Kumar et al. 2022, arXiv 2202.10054)."""

    head: Literal["none", "logistic", "ridge", "prototypes", "auto"] = "none"
    """Method that fits the classifier. none starts at random weights. logistic is multinomial logistic regression by
    L-BFGS. ridge is ridge regression of one-hot targets, in closed form. prototypes uses the mean direction of each class's
    features (SimpleShot, arXiv 1911.04623), for one or two images per class. auto uses the one of the three with the lowest validation
    loss."""
    l2: float | None = None
    """Regularization of the classifier (logistic, ridge): weight of the squared norm per image, for scaled
    features. [default: the value of a grid with the lowest validation loss]"""
    views: int = 1
    """Number of views of each training image. The first view is the center crop of evaluation. The others are random
    crops and flips as in augment, and are the same in every run."""
    features: str | None = None
    """Folder or URI of the stored features. Runs and trials share it. [default: features in the output folder]"""

    def __post_init__(self) -> None:
        require(self.l2 is None or self.l2 > 0, f"probe.l2 is {self.l2}; expected above 0")
        require(1 <= self.views <= 1000, f"probe.views is {self.views}; expected 1 to 1000")
        require(
            self.l2 is None or self.head in ("logistic", "ridge"),
            f"probe.l2 is set, but probe.head is {self.head}; set probe.head to logistic or ridge, or remove probe.l2",
        )
        for name, default in (("views", 1), ("features", None)):
            require(
                self.head != "none" or getattr(self, name) == default,
                f"probe.{name} is set, but probe.head is none; set probe.head, or remove probe.{name}",
            )
