"""Triggers of checkpoints within an epoch: number of steps, minutes, or requests. All ranks save in the same step."""

import time
from typing import Literal

import torch

from landmark.config import CheckpointConfig
from landmark.training.loop.session import Session

SYNC_INTERVAL_STEPS = 16
"""Steps between two synchronizations of the ranks' decisions that do not depend on steps only."""
ASK_S = 5.0
"""Minimum seconds between two checks for requests, each of which costs a round of messages."""

Due = Literal["no", "planned", "asked"]


class SaveTrigger:
    """Decides after each step whether to save. Every rank has one and calls it equally often."""

    def __init__(self, config: CheckpointConfig | None, session: Session) -> None:
        self.config = config or CheckpointConfig(minutes=None)
        self.session = session
        self.before_validation = config is not None and session.saves_within_epochs
        """Whether a run also saves after an epoch's last step, before validation."""
        self.saved_at = self.requested_at = time.monotonic()

    def due(self, step: int) -> Due:
        """Return whether to save now. step: steps of this epoch since it was divided among the ranks."""
        if not self.session.saves_within_epochs:
            return "no"
        by_steps = self.config.steps is not None and step % self.config.steps == 0
        if self.session.world_size == 1:  # there is no other rank to synchronize with
            late, ask = self._clock(), True
        elif step % SYNC_INTERVAL_STEPS == 0:
            # Rank 0's clock decides, because clocks differ.
            local_flags = [float(self._clock()), float(time.monotonic() - self.requested_at > ASK_S)]
            flags = torch.tensor(local_flags if self.session.rank == 0 else [0.0, 0.0], device=self.session.device)
            late, ask = (bool(flag) for flag in self.session.all_reduce(flags).tolist())
        else:
            late = ask = False
        if ask:
            self.requested_at = time.monotonic()
            if self.session.checkpoint_requested():
                return "asked"
        return "planned" if by_steps or late else "no"

    def asked_without_others(self) -> bool:
        """Return whether a checkpoint is requested. Always False with several ranks, which must synchronize."""
        return self.session.saves_within_epochs and self.session.world_size == 1 and self.session.checkpoint_requested()

    def _clock(self) -> bool:
        minutes = self.config.minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def saved(self) -> None:
        """Restart the count of minutes."""
        self.saved_at = time.monotonic()
