"""Classification loss with label smoothing, mixed labels, class weights and auxiliary heads."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from landmark.models.heads import Margin

AUXILIARY_WEIGHTS = {"InceptionOutputs": 0.4, "GoogLeNetOutputs": 0.3}
"""Loss weight of an auxiliary head: 0.4 as in torchvision's Inception v3 recipe, 0.3 as in Szegedy et al. 2015."""


@dataclass(kw_only=True, frozen=True)
class MixedLabels:
    """The second label of images that MixUp or CutMix combined with another image."""

    labels: torch.Tensor
    """The other image's label, int64 (n,)."""
    weight: float
    """Weight of the image's own label, 0 to 1. The other label has the remaining weight."""

    def part(self, start: int, stop: int) -> "MixedLabels":
        """Return the labels of the images [start, stop)."""
        return MixedLabels(labels=self.labels[start:stop], weight=self.weight)


@dataclass(kw_only=True, frozen=True)
class Targets:
    """What a batch's outputs should be."""

    labels: torch.Tensor
    """int64 (n,)."""
    mixed: MixedLabels | None = None
    taught: torch.Tensor | None = None
    """Probabilities of a teacher (n, classes), those of mixed images mixed."""

    def part(self, start: int, stop: int) -> "Targets":
        """Return the targets of the images [start, stop)."""
        return Targets(
            labels=self.labels[start:stop],
            mixed=self.mixed.part(start, stop) if self.mixed is not None else None,
            taught=self.taught[start:stop] if self.taught is not None else None,
        )


def logits_of(output: Any) -> torch.Tensor:
    """Return the main head's logits (n, classes) from a model's output."""
    return output if isinstance(output, torch.Tensor) else output[0]


def classification_loss(
    output: Any,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    *,
    mixed: MixedLabels | None = None,
    class_weights: torch.Tensor | None = None,
    margin: Margin | None = None,
    adjustment: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross entropy over the batch, in training mode including weighted auxiliary heads.

    output: logits (n, classes), or torchvision's tuple of them for Inception v3 and GoogLeNet in training mode. labels:
    int64 (n,). mixed: second labels of mixed images. Two labels per image are used instead of a dense row of targets,
    which would be as large as the logits for 203,094 classes. class_weights: weight per image of each class,
    (classes,). The sum is divided by the number of images, not by their weights, so a batch of rare classes counts more
    than a batch of frequent ones. margin: lowers target logits of cosine heads, which have no auxiliary heads. For
    mixed images, the loss of each label is computed with that label's own margin. adjustment: added to the logits of all
    images, (classes,), see `logit_adjustment`.
    """
    if isinstance(output, torch.Tensor):
        return _cross_entropy(output, labels, label_smoothing, mixed, class_weights, margin, adjustment)
    losses = [
        _cross_entropy(logits, labels, label_smoothing, mixed, class_weights, None, adjustment)
        for logits in output
        if logits is not None
    ]
    weight = AUXILIARY_WEIGHTS[type(output).__name__]
    return losses[0] + weight * torch.stack(losses[1:]).sum() if len(losses) > 1 else losses[0]


def distillation_loss(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean divergence of the probabilities from a teacher's, both with a temperature (Hinton et al. 2015).

    logits: (n, classes). taught: the teacher's probabilities with this temperature, (n, classes). The factor temperature**2 keeps the
    size of the gradient.
    """
    logs = (logits.float() / temperature).log_softmax(1)
    return temperature**2 * nn.functional.kl_div(logs, taught, reduction="batchmean")


def class_weights(counts: np.ndarray, name: Literal["none", "sqrt", "balanced"]) -> np.ndarray | None:
    """Return the loss weight per image of each class, float32 (classes,), with mean 1 over all training images.

    counts: training images per class. sqrt: proportional to 1/sqrt(count). balanced: proportional to 1/count. none:
    returns None. A class without images has weight 0.
    """
    if name == "none":
        return None
    images = counts.astype(np.float64)
    power = -0.5 if name == "sqrt" else -1.0
    weights = np.power(images, power, out=np.zeros_like(images), where=images > 0)
    return (weights * images.sum() / (weights * images).sum()).astype(np.float32)


def logit_adjustment(counts: np.ndarray, factor: float) -> np.ndarray | None:
    """Return factor * log(count) of each class, float32 (classes,), or None for a factor of 0.

    counts: training images per class. A class without images counts as a class with one image. Menon et al. 2021 (arXiv
    2007.07314), whose priors differ from the counts by a factor that the softmax removes.
    """
    if not factor:
        return None
    return (factor * np.log(np.maximum(counts, 1))).astype(np.float32)


def _cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float,
    mixed: MixedLabels | None,
    weights: torch.Tensor | None,
    margin: Margin | None,
    adjustment: torch.Tensor | None,
) -> torch.Tensor:
    """Return the mean loss of one head. Without margins, the log-probabilities are computed once for both labels."""

    def log_softmax(values: torch.Tensor) -> torch.Tensor:
        return nn.functional.log_softmax(values if adjustment is None else values + adjustment, dim=1)

    plain = log_softmax(logits.float()) if margin is None else None

    def of(targets: torch.Tensor) -> torch.Tensor:
        logs = plain
        if margin is not None:
            logs = log_softmax(margin.on_all(logits.float(), targets))
        assert logs is not None
        losses = nn.functional.nll_loss(logs, targets, reduction="none")
        if label_smoothing:
            losses = torch.lerp(losses, -logs.mean(dim=1), label_smoothing)
        return losses if weights is None else losses * weights[targets]

    if mixed is None:
        return of(labels).mean()
    return (mixed.weight * of(labels) + (1 - mixed.weight) * of(mixed.labels)).mean()
