"""Packing tasks: the tasks of a packing job, and the paths of their results."""

from dataclasses import dataclass, field

WORK_FOLDER = "_work"
PARTS_FOLDER = "parts"
WITHOUT_FOLDER = "without"
SIZE_SAMPLES = 48
"""Number of images packed beforehand to estimate the mean size."""
MIN_TASKS = 16
"""Target number of tasks for small datasets, so that packing can run in parallel."""


@dataclass(kw_only=True, frozen=True)
class PackingTask:
    """One packing task: the images of one shard, or some tars, whose images become shards of all splits."""

    number: int
    """Index in the plan. For planned rows, it is also the row group in the plan's file."""
    name: str
    """File name of its shards, without the suffix that numbers several shards of a split."""
    rows: int
    """Number of planned images. For tars, it is the expected number."""
    split: str | None = None
    """train, val or test. None for tars, which contain all splits."""
    tars: list[str] = field(default_factory=list)
    """Paths of the tars relative to the root of the source. Empty for planned rows."""
    shard_rows: dict[str, int] = field(default_factory=dict)
    """Maximum rows per shard, by split. Empty for no maximum."""

    def shard_path(self, split: str, number: int) -> str:
        """Return the path, relative to the dataset, of the task's shard `number` of a split."""
        return f"{split}/{self.name}{f'-{number}' if number else ''}.parquet"
