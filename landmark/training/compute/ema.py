"""Averages of a model's weights: an exponential moving average (EMA), and its mean with the start weights."""

import copy
from typing import Any

import torch
from torch import nn

from landmark.config import EmaConfig
from landmark.models import has_lora
from landmark.models.lora import LowRank


class ModelEma:
    """Exponential moving average of a model's trainable weights (Polyak & Juditsky 1992).

    Running statistics are copied instead, because they are averages already. With config.start_weight, `model` is the
    weighted mean of the average and the start weights (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).
    """

    def __init__(self, source: nn.Module, config: EmaConfig) -> None:
        assert config.decay is not None
        self.decay = config.decay
        self.warmup = config.warmup
        self.start_weight = config.start_weight
        self.source = source
        self._model = copy.deepcopy(source).eval().requires_grad_(False)
        pairs = zip(self._model.parameters(), source.parameters(), strict=True)
        trained = [(local, theirs.detach()) for local, theirs in pairs if theirs.requires_grad]
        # LoRA's update is a product whose first factor is 0 at the start. So the mean of the factor is that of the update.
        fixed = {id(module.down) for module in self._model.modules() if isinstance(module, LowRank)}
        self._shown: list[torch.Tensor] = [local for local, _ in trained]
        self._weights = [theirs for _, theirs in trained]
        # Without start weights, the average is the model itself.
        self._averages = [local.clone() for local in self._shown] if self.start_weight else self._shown
        self._mixed = [local for local in self._shown if id(local) not in fixed] if self.start_weight else []
        self._mixed_weights = [theirs for local, theirs in trained if id(local) not in fixed]
        self._start = [local.clone() for local in self._mixed]

    def update(self, step: int) -> None:
        """Update the average after a step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    def load(self) -> None:
        """Restart the average from the model's current weights, which become the start weights."""
        self._model.load_state_dict(self.source.state_dict())
        if self.start_weight:
            torch._foreach_copy_(self._averages, self._weights)
            torch._foreach_copy_(self._start, self._mixed_weights)

    def state(self) -> dict[str, Any]:
        """Return what the stored weights do not contain: the averages, if start weights or LoRA are merged there, and the start."""
        if not self.start_weight and not has_lora(self.source):
            return {}
        return {"averages": self._averages, "start": self._start}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a state, after the weights of `model`."""
        if "averages" in state:
            torch._foreach_copy_(self._averages, state["averages"])
        if self._start:
            torch._foreach_copy_(self._start, state["start"])

    @property
    def model(self) -> nn.Module:
        """The averaged model in evaluation mode, with the current running statistics of the source model."""
        with torch.no_grad():
            for local, theirs in zip(self._model.buffers(), self.source.buffers(), strict=True):
                local.copy_(theirs)
            if self.start_weight:
                torch._foreach_copy_(self._shown, self._averages)
                torch._foreach_lerp_(self._mixed, self._start, self.start_weight)
        return self._model
