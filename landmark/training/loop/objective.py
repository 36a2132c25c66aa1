"""What a training step minimizes: the classification loss, and the distance to a teacher's probabilities."""

from typing import Any, Protocol

import numpy as np
import torch

from landmark.config import Recipe
from landmark.models import (
    MixedLabels,
    Targets,
    build_margin,
    class_weights,
    classification_loss,
    distillation_loss,
    logit_adjustment,
    logits_of,
)
from landmark.training.compute.device_augmentation import rolled
from landmark.training.compute.device_prefetch import DeviceBatch, upload


class Teaching(Protocol):
    """Teachers of a distillation."""

    def probabilities(self, batch: DeviceBatch) -> torch.Tensor:
        """Return the probabilities (n, classes) of a batch's images."""
        ...


class Objective:
    """Loss of a recipe on a device.

    class_counts: training images per class, int64 (classes,), required by loss.class_weights, loss.logit_adjustment and dynamic
    margins.
    """

    def __init__(self, recipe: Recipe, class_counts: np.ndarray | None, device: torch.device) -> None:
        self.recipe = recipe
        self.margin = build_margin(recipe.model.head, class_counts, device)
        self.teacher: Teaching | None = None
        """Gives the probabilities of the teachers, if there are teachers."""
        self.host_class_weights = _class_weights(recipe, class_counts)
        """Loss weight per image of each class, float32 (classes,), on the CPU. None if all are equal."""
        weights, adjustment = self.host_class_weights, _adjustment(recipe, class_counts)
        self._class_weights = None if weights is None else upload(weights, device)
        self._adjustment = None if adjustment is None else upload(adjustment, device)

    def targets(self, batch: DeviceBatch, mixed: MixedLabels | None) -> Targets:
        """Return what the outputs of a batch should be."""
        taught = None
        if self.teacher is not None:
            taught = self.teacher.probabilities(batch)
            if mixed is not None:
                taught = torch.lerp(rolled(taught), taught, mixed.weight)
        return Targets(labels=batch.labels, mixed=mixed, taught=taught)

    def loss(self, output: Any, targets: Targets) -> torch.Tensor:
        """Return the mean loss of a model's output."""
        loss = classification_loss(
            output,
            targets.labels,
            self.recipe.loss.label_smoothing,
            mixed=targets.mixed,
            class_weights=self._class_weights,
            margin=self.margin,
            adjustment=self._adjustment,
        )
        if targets.taught is None:
            return loss
        distill = self.recipe.distill
        taught = distillation_loss(logits_of(output), targets.taught, distill.temperature)
        return torch.lerp(loss, taught, distill.weight)


def _class_weights(recipe: Recipe, counts: np.ndarray | None) -> np.ndarray | None:
    if recipe.loss.class_weights == "none":
        return None
    assert counts is not None, "loss.class_weights needs the number of training images per class"
    return class_weights(counts, recipe.loss.class_weights)


def _adjustment(recipe: Recipe, counts: np.ndarray | None) -> np.ndarray | None:
    if not recipe.loss.logit_adjustment:
        return None
    assert counts is not None, "loss.logit_adjustment needs the number of training images per class"
    return logit_adjustment(counts, recipe.loss.logit_adjustment)
