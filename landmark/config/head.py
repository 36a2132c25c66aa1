"""Config of the classifier of an embedding model: cosines, margins, and the sampled head (Partial FC)."""

from dataclasses import dataclass
from typing import Literal

from landmark.config.errors import require

PAPER_MARGINS = {"cosface": 0.35, "arcface": 0.5, "subcenter": 0.5}
"""Default margin of each head, from its paper."""


@dataclass(kw_only=True, frozen=True)
class HeadConfig:
    """The classifier head, which maps an image's embedding to one logit per class."""

    name: Literal["linear", "cosface", "arcface", "subcenter"] = "linear"
    """Classifier head. linear has weights and biases. The others use scaled cosines with the class weights, and apply a
    margin to the image's own class in training. These are cosface (arXiv 1801.09414), arcface (arXiv 1801.07698) and
    subcenter (sub-center ArcFace, Deng et al., ECCV 2020)."""
    scale: float = 30.0
    """Factor on the cosines (cosface, arcface, subcenter)."""
    margin: float | None = None
    """Additive margin, a cosine (cosface) or radians (arcface, subcenter). In training, cosface subtracts it from the
    cosine of an image's own class. arcface and subcenter add it to the angle. [default: 0.35 for cosface, else 0.5]"""
    min_margin: float | None = None
    """Dynamic margin of the class with the most training images. Dynamic margins (arXiv 2010.05350) are a *
    images^-margin_power + b. The class with the fewest training images has the margin model.head.margin. [default: the
    same margin for all classes]"""
    margin_power: float = 0.25
    """How fast dynamic margins fall with the training images per class."""
    subcenters: int = 3
    """Number of sub-centers per class, of which the nearest counts (subcenter)."""
    sample: float | None = None
    """Fraction of the classes per step (Partial FC, arXiv 2010.05222). It is above 0, up to 1. A step uses the classes
    of its batch and a random sample of the others. The training processes divide the classes among themselves. No
    process stores a matrix of images x classes. [default: all classes in each process]"""

    def __post_init__(self) -> None:
        require(self.scale > 0, f"model.head.scale is {self.scale}; expected above 0")
        if self.name == "linear":
            for key in ("margin", "min_margin"):
                require(
                    getattr(self, key) is None,
                    f"model.head.{key} is {getattr(self, key)}, but a linear head has no margin; choose another head, or remove it",
                )
        else:
            require(0 <= self.own_margin() < 1, f"model.head.margin is {self.margin}; expected 0 to below 1")
            require(
                self.min_margin is None or 0 <= self.min_margin <= self.own_margin(),
                f"model.head.min_margin is {self.min_margin}; expected 0 to margin ({self.own_margin()})",
            )
        require(self.margin_power > 0, f"model.head.margin_power is {self.margin_power}; expected above 0")
        require(self.subcenters >= 1, f"model.head.subcenters is {self.subcenters}; expected 1 or more")
        require(
            self.sample is None or 0 < self.sample <= 1,
            f"model.head.sample is {self.sample}; expected above 0, up to 1, or no value",
        )

    def own_margin(self) -> float:
        """Return the margin, by default the margin of the paper. 0 for a linear head."""
        return PAPER_MARGINS.get(self.name, 0.0) if self.margin is None else self.margin
