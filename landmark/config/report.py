"""Config of the verb report."""

import math
from dataclasses import dataclass

from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class ReportConfig:
    """Make a page and tables out of a study or a run, or print a study beside the deck's summary."""

    run: str | None = None
    """Folder or URI of a study or a run."""
    deck: str | None = None
    """Folder or URI of a study whose numbers are printed beside the deck's; no page is made."""
    output: str | None = None
    """Folder or URI for the page and tables; empty: report in the run's folder."""
    cleaned: str | None = None
    """Folder or URI of a cleaned dataset whose audit is shown; empty: the run's dataset, where it is a cleaned one."""
    price_per_hour: float | None = None
    """What an hour of the machine or cluster costs, in any currency: the page then tells the cost; empty: it does not."""

    def __post_init__(self) -> None:
        require(bool(self.run) != bool(self.deck), "expected --run FOLDER or --deck STUDY, one of the two")
        price = self.price_per_hour
        require(
            price is None or (math.isfinite(price) and price >= 0),
            f"price_per_hour is {price}; expected a number of 0 or more",
        )
