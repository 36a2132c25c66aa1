"""When a run saves within an epoch: by steps, by minutes, or because someone asks; on all ranks in the same step."""

import time
from typing import Literal

import torch

from landmark.config import CheckpointConfig
from landmark.training.session import Session

AGREE_STEPS = 16
"""Steps between two agreements of several ranks on what is not decided by steps alone."""
ASK_S = 5.0
"""Seconds between two questions to the surroundings, which cost a round of messages."""

Due = Literal["no", "planned", "asked"]


class SaveTrigger:
    """Decides after each step; one on every rank, called alike."""

    def __init__(self, config: CheckpointConfig | None, session: Session) -> None:
        self.config = config or CheckpointConfig(minutes=None)
        self.session = session
        self.before_validation = config is not None and session.saves_within_epochs
        """Whether a run also saves when an epoch's steps are done, before it validates."""
        self.saved_at = self.asked_at = time.monotonic()

    def due(self, step: int) -> Due:
        """Return whether to save now; step: steps done in this epoch since it was divided among the ranks."""
        if not self.session.saves_within_epochs:
            return "no"
        by_steps = self.config.steps is not None and step % self.config.steps == 0
        if self.session.world_size == 1:  # no other rank has to be asked
            late, ask = self._clock(), True
        elif step % AGREE_STEPS == 0:
            # Rank 0's clock decides: others differ.
            mine = [float(self._clock()), float(time.monotonic() - self.asked_at > ASK_S)]
            flags = torch.tensor(mine if self.session.rank == 0 else [0.0, 0.0], device=self.session.device)
            late, ask = (bool(flag) for flag in self.session.all_reduce(flags).tolist())
        else:
            late = ask = False
        if ask:
            self.asked_at = time.monotonic()
            if self.session.asked():
                return "asked"
        return "planned" if by_steps or late else "no"

    def asked_alone(self) -> bool:
        """Return whether the surroundings want a checkpoint, where no other rank has to be asked: at any time."""
        return self.session.saves_within_epochs and self.session.world_size == 1 and self.session.asked()

    def _clock(self) -> bool:
        minutes = self.config.minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def saved(self) -> None:
        """Begin to count the minutes anew."""
        self.saved_at = time.monotonic()
