"""The plans of one rank for one split: the rows of each epoch, their order, and their division into parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from landmark.config import LoaderConfig
from landmark.data.loading.plan import RankPlan, plan_evaluation, plan_training_epoch
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.sampling import EpochRows
from landmark.data.loading.schedule import ReadSchedule, Window, windows_of

Shape = Callable[[int], tuple[int, int]]
"""Image size (pixels) and batch size (images over all ranks) of an epoch."""
PART_ROWS = 8192
"""Default rows of a part. If a reader dies, another one reads its part again."""
MAX_PARTS = 1000
"""Maximum number of parts of all epochs together, if there are not more epochs. The start of a stream takes about a
millisecond per part."""


def fixed_shape(config: LoaderConfig) -> Shape:
    """Return the shape of a loader whose image size and batch size are the same in all epochs."""
    return lambda epoch: (config.image_size, config.batch_size)


@dataclass(kw_only=True, frozen=True, eq=False)
class RankPlans:
    """The plans of one rank for one split. They depend only on these fields, so every process derives the same plans."""

    rows: EpochRows
    rank: int
    world_size: int
    seed: int
    training: bool
    """Whether epochs are shuffled. If not, rows are in their own order."""
    epochs: range
    shape: Shape
    shuffle_row_groups: int
    """Number of row groups whose rows are shuffled together in training."""
    position: EpochProgress | None = None
    """Position at which the first epoch resumes. None for its start."""
    part_rows: int = PART_ROWS
    """Rows of a part, about."""

    def plan(self, epoch: int) -> RankPlan:
        """Return this rank's plan of an epoch, from the last point at which the epoch was divided among the ranks."""
        _, batch_size = self.shape(epoch)
        placed = {"rank": self.rank, "world_size": self.world_size, "batch_size": batch_size}
        if not self.training:
            return plan_evaluation(self.rows.groups, **placed)
        begun = self._begun(epoch)
        before = begun.before if begun else None
        left = self.rows.left(epoch, before)
        return plan_training_epoch(left, **placed, seed=self.seed, epoch=epoch, resumed=before is not None)

    def schedule(self, epoch: int) -> ReadSchedule:
        """Return the remaining reads and batches of an epoch."""
        begun = self._begun(epoch) if self.training else None
        window = self.shuffle_row_groups if self.training else 1
        return ReadSchedule.of(epoch, self.plan(epoch), begun.step if begun else 0, window)

    def windows(self, schedule: ReadSchedule, part: int = 0, parts: int = 1) -> Iterator[Window]:
        """Yield the windows of a schedule, or of one of its parts."""
        return windows_of(schedule, self.seed if self.training else None, part, parts)

    @property
    def parts(self) -> int:
        """Number of parts of each epoch."""
        wanted = -(-self.rows.total // (self.world_size * self.part_rows))
        return max(1, min(wanted, MAX_PARTS // max(1, len(self.epochs))))

    def largest(self) -> tuple[int, int]:
        """Return rows and image size of this rank's largest batch."""
        size, batch = max((self.shape(epoch) for epoch in self.epochs), key=lambda shape: shape[0] ** 2 * shape[1])
        return -(-batch // self.world_size), size

    def _begun(self, epoch: int) -> EpochProgress | None:
        return self.position if self.position is not None and self.position.epoch == epoch else None
