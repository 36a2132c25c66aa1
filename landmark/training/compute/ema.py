"""Exponential moving average (EMA) of a model's weights."""

import copy

import torch
from torch import nn

from landmark.config import EmaConfig


class ModelEma:
    """Exponential moving average of a model's trainable weights (Polyak & Juditsky 1992).

    Running statistics are copied instead, because they are averages already.
    """

    def __init__(self, source: nn.Module, config: EmaConfig) -> None:
        assert config.decay is not None
        self.decay = config.decay
        self.warmup = config.warmup
        self.source = source
        self._model = copy.deepcopy(source).eval().requires_grad_(False)
        pairs = zip(self._model.parameters(), source.parameters(), strict=True)
        trained = [(local, theirs.detach()) for local, theirs in pairs if theirs.requires_grad]
        self._averages: list[torch.Tensor] = [local for local, _ in trained]
        self._weights = [theirs for _, theirs in trained]

    def update(self, step: int) -> None:
        """Update the average after a step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    def load(self) -> None:
        """Restart the average from the model's current weights."""
        self._model.load_state_dict(self.source.state_dict())

    @property
    def model(self) -> nn.Module:
        """The averaged model in evaluation mode, with the current running statistics of the source model."""
        with torch.no_grad():
            for local, theirs in zip(self._model.buffers(), self.source.buffers(), strict=True):
                local.copy_(theirs)
        return self._model
