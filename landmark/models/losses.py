"""The loss of a classifier's output: smoothed, mixed and weighted labels, auxiliary heads included."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from landmark.models.heads import Margin

AUXILIARY_WEIGHTS = {"InceptionOutputs": 0.4, "GoogLeNetOutputs": 0.3}
"""What an auxiliary head's loss counts: 0.4 as torchvision's Inception v3 recipe has it, 0.3 after Szegedy et al. 2015."""


@dataclass(kw_only=True, frozen=True)
class MixedLabels:
    """The second label of images that are mixed with another one each."""

    labels: torch.Tensor
    """The other image's label, int64 (n,)."""
    share: float
    """What the image's own label counts, 0 to 1; the other one counts the rest."""

    def part(self, start: int, stop: int) -> "MixedLabels":
        """Return those of the images [start, stop)."""
        return MixedLabels(labels=self.labels[start:stop], share=self.share)


def logits_of(output: Any) -> torch.Tensor:
    """Return the main head's logits (n, classes) of a model's output."""
    return output if isinstance(output, torch.Tensor) else output[0]


def classification_loss(
    output: Any,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    *,
    mixed: MixedLabels | None = None,
    class_weights: torch.Tensor | None = None,
    margin: Margin | None = None,
) -> torch.Tensor:
    """Return the mean cross entropy over the batch, auxiliary heads weighted in while they train.

    output: logits (n, classes), or torchvision's tuple of them for Inception v3 and GoogLeNet in
    training. labels: int64 (n,). mixed: the labels that count beside them; two labels an image, never a dense
    row of targets, which 203,094 classes would make as large as the logits. class_weights: (classes,), what an
    image of each class counts; the sum is divided by the images, not by their weights, so that a batch of rare
    classes counts more than one of frequent ones. margin: what lowers the logit of a label's own class, of cosine heads, which
    have no auxiliary ones; of two mixed labels each has the loss that it would have alone.
    """
    if isinstance(output, torch.Tensor):
        return _cross_entropy(output, labels, label_smoothing, mixed, class_weights, margin)
    losses = [
        _cross_entropy(logits, labels, label_smoothing, mixed, class_weights) for logits in output if logits is not None
    ]
    weight = AUXILIARY_WEIGHTS[type(output).__name__]
    return losses[0] + weight * torch.stack(losses[1:]).sum() if len(losses) > 1 else losses[0]


def class_weights(counts: np.ndarray, name: Literal["none", "sqrt", "balanced"]) -> np.ndarray | None:
    """Return what an image of each class counts, float32 (classes,), the mean over all training images 1.

    counts: training images a class. sqrt: as 1/sqrt of them; balanced: as 1/them; none: None. A class without
    images has no weight.
    """
    if name == "none":
        return None
    images = counts.astype(np.float64)
    power = -0.5 if name == "sqrt" else -1.0
    weights = np.power(images, power, out=np.zeros_like(images), where=images > 0)
    return (weights * images.sum() / (weights * images).sum()).astype(np.float32)


def _cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float,
    mixed: MixedLabels | None,
    weights: torch.Tensor | None,
    margin: Margin | None = None,
) -> torch.Tensor:
    """Return the mean of one head's loss; without margins the logarithms of the shares are computed once for both labels."""
    plain = nn.functional.log_softmax(logits.float(), dim=1) if margin is None else None

    def of(targets: torch.Tensor) -> torch.Tensor:
        logs = plain
        if margin is not None:
            logs = nn.functional.log_softmax(margin.on_all(logits.float(), targets), dim=1)
        assert logs is not None
        losses = nn.functional.nll_loss(logs, targets, reduction="none")
        if label_smoothing:
            losses = torch.lerp(losses, -logs.mean(dim=1), label_smoothing)
        return losses if weights is None else losses * weights[targets]

    if mixed is None:
        return of(labels).mean()
    return (mixed.share * of(labels) + (1 - mixed.share) * of(mixed.labels)).mean()
