"""Config of the classifier of an embedding model: cosines and margins, and how many of its classes a step looks at."""

from dataclasses import dataclass
from typing import Literal

from landmark.config.errors import require

PAPER_MARGINS = {"cosface": 0.35, "arcface": 0.5, "subcenter": 0.5}
"""Margin of each head where the config names none: those of the papers."""


@dataclass(kw_only=True, frozen=True)
class HeadConfig:
    """What turns an image's embedding into a logit a class."""

    name: Literal["linear", "cosface", "arcface", "subcenter"] = "linear"
    """linear: weights and biases. The others: scaled cosines to a centre a class, an image's own lowered by a margin in training:
    cosface (arXiv 1801.09414), arcface (arXiv 1801.07698), subcenter (sub-center ArcFace, Deng et al., ECCV 2020)."""
    scale: float = 30.0
    """What cosines are multiplied with."""
    margin: float | None = None
    """cosface: what an image's own cosine is lowered by; arcface, subcenter: what its angle is widened by, radians; empty: 0.35
    for cosface, 0.5 for the others."""
    margin_least: float | None = None
    """Margins by class size (arXiv 2010.05350): a * images^-margin_power + b, which is margin for the class with the fewest
    training images and margin_least for that with the most; empty: one margin for all."""
    margin_power: float = 0.25
    """How fast margins fall with the class's training images."""
    subcenters: int = 3
    """subcenter: centres a class, of which the nearest counts."""
    sample: float | None = None
    """Share of the classes that a step looks at: those of the batch and others by lot (Partial FC, arXiv 2010.05222), above 0 to 1.
    The workers share the classes out; nothing is as large as images x classes. Empty: all classes on each worker."""

    def __post_init__(self) -> None:
        require(self.scale > 0, f"model.head.scale is {self.scale}; expected above 0")
        if self.name == "linear":
            for key in ("margin", "margin_least"):
                require(
                    getattr(self, key) is None,
                    f"model.head.{key} is {getattr(self, key)}, but a linear head has no margin; choose another head, or leave it empty",
                )
        else:
            require(0 <= self.own_margin() < 1, f"model.head.margin is {self.margin}; expected 0 to below 1")
            require(
                self.margin_least is None or 0 <= self.margin_least <= self.own_margin(),
                f"model.head.margin_least is {self.margin_least}; expected 0 to margin ({self.own_margin()})",
            )
        require(self.margin_power > 0, f"model.head.margin_power is {self.margin_power}; expected above 0")
        require(self.subcenters >= 1, f"model.head.subcenters is {self.subcenters}; expected 1 or more")
        require(
            self.sample is None or 0 < self.sample <= 1,
            f"model.head.sample is {self.sample}; expected above 0, up to 1, or empty",
        )

    def own_margin(self) -> float:
        """Return the margin, the paper's where none is named; 0 for a linear head."""
        return PAPER_MARGINS.get(self.name, 0.0) if self.margin is None else self.margin
