"""The loss of a classifier's output, auxiliary heads included."""

from typing import Any

import torch
from torch import nn

AUXILIARY_WEIGHTS = {"InceptionOutputs": 0.4, "GoogLeNetOutputs": 0.3}
"""What an auxiliary head's loss counts: 0.4 as torchvision's Inception v3 recipe has it, 0.3 after Szegedy et al. 2015."""


def logits_of(output: Any) -> torch.Tensor:
    """Return the main head's logits (n, classes) of a model's output."""
    return output if isinstance(output, torch.Tensor) else output[0]


def classification_loss(output: Any, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return the mean cross entropy over the batch, auxiliary heads weighted in while they train.

    output: logits (n, classes), or torchvision's tuple of them for Inception v3 and GoogLeNet in
    training. labels: int64 (n,).
    """
    if isinstance(output, torch.Tensor):
        return nn.functional.cross_entropy(output.float(), labels, label_smoothing=label_smoothing)
    weight = AUXILIARY_WEIGHTS[type(output).__name__]
    losses = [classification_loss(logits, labels, label_smoothing) for logits in output if logits is not None]
    return losses[0] + weight * torch.stack(losses[1:]).sum() if len(losses) > 1 else losses[0]
