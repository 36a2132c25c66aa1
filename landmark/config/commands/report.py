"""Config of the command report."""

import math
from dataclasses import dataclass

from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class ReportConfig:
    """Make a page and tables of a study or a run, or compare a study with the reference study. The reference study is
    the one that this project started from, with twelve models on 100 classes."""

    run: str | None = None
    """Folder or URI of a study or a run. [default: none]"""
    reference: str | None = None
    """Folder or URI of a study to compare with the reference study. The command makes no page. [default: none]"""
    output: str | None = None
    """Folder or URI for the page and tables. [default: report in the folder of the run]"""
    cleaned: str | None = None
    """Folder or URI of a cleaned dataset whose audit is shown. [default: the run's dataset, if it is a cleaned one]"""
    price_per_hour: float | None = None
    """Price per hour of the machine or cluster, in any currency. The page then shows the cost. [default: none]"""

    def __post_init__(self) -> None:
        require(bool(self.run) != bool(self.reference), "expected --run FOLDER or --reference STUDY (exactly one)")
        price = self.price_per_hour
        require(
            price is None or (math.isfinite(price) and price >= 0),
            f"price_per_hour is {price}; expected a number of 0 or more",
        )
