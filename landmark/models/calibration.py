"""Temperature scaling: calibrated probabilities by one factor on all logits (Guo et al. 2017, arXiv 1706.04599)."""

import math
from collections.abc import Callable

import torch
from torch import nn

from landmark.models.heads import Classifier
from landmark.models.stages import classifier_path

LIMITS = (0.05, 20.0)
"""Minimum and maximum temperature."""
STEPS = 40


def fit_temperature(
    logits: torch.Tensor,
    labels: torch.Tensor,
    combine: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
) -> float:
    """Return the temperature that minimizes the cross entropy of logits / temperature.

    logits: (n, classes). labels: int64 (n,). combine: sums values over the ranks, which hold different images. The cross
    entropy is convex in the inverse temperature, so the zero of its derivative is found by bisection. Its targets are
    smoothed by 1 / (n + 2) (Platt 1999), because without an error the temperature would be 0. Returns 1 if there are no
    images.
    """
    logits = logits.float()
    own = logits.gather(1, labels[:, None])[:, 0].double().sum()
    own_sum, mean_sum, images = combine(
        torch.stack([own, logits.double().mean(1).sum(), own.new_full((), len(logits))])
    ).tolist()
    if not images:
        return 1.0
    target = own_sum + (mean_sum - own_sum) / (images + 2)
    low, high = (math.log(1 / limit) for limit in reversed(LIMITS))
    for _ in range(STEPS):
        middle = (low + high) / 2
        weights = (logits * math.exp(middle)).softmax(1)
        expected = combine((weights * logits).sum(1).double().sum().reshape(1))
        if float(expected) < target:
            low = middle  # the targets' logits are above the expected ones: larger factors have a lower loss
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def with_temperature(model: nn.Module, temperature: float) -> nn.Module:
    """Divide a model's logits by a temperature, by changing its last layer in place. Returns the model.

    The last layer is linear, a convolution before a ReLU and an average, or scaled cosines, so this is exact.
    """
    if temperature == 1:
        return model
    path = classifier_path(model)
    layers = [model.get_submodule(path)]
    parent, _, name = path.rpartition(".")
    layers += [layer for key, layer in model.get_submodule(parent).named_children() if f"{key}_dist" == name]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, Classifier) and layer.cosine:
                layer.scale /= temperature
            else:
                for parameter in layer.parameters(recurse=False):
                    parameter.div_(temperature)
    return model
