"""Units: the pieces of work of a packing job, and where their figures lie."""

from dataclasses import dataclass, field

WORK_FOLDER = "_work"
PARTS_FOLDER = "parts"
WITHOUT_FOLDER = "without"
SIZE_SAMPLES = 48
"""Images that are packed beforehand to judge the size of all."""
UNITS_AT_LEAST = 16
"""Pieces of work aimed at where there is little data, so that packing has something to share out."""


@dataclass(kw_only=True, frozen=True)
class Unit:
    """One piece of work: the images of one shard, or some tars, whose images make shards of all splits."""

    number: int
    """Its place in the plan; of planned rows also their row group in the plan's file."""
    name: str
    """File name of its shards, without what tells apart several of one split."""
    rows: int
    """Images planned; of tars: expected."""
    split: str | None = None
    """train, val or test; None: tars hold all."""
    tars: list[str] = field(default_factory=list)
    """Paths of the tars below the source's root; empty: planned rows."""
    shard_rows: dict[str, int] = field(default_factory=dict)
    """Rows of each split after which another shard begins; empty: never."""

    def shard_path(self, split: str, number: int) -> str:
        """Return the path below the dataset of the unit's shard `number` of a split."""
        return f"{split}/{self.name}{f'-{number}' if number else ''}.parquet"
