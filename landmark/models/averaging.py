"""Averages of outputs: over an image and its mirror image, and over several models."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from landmark.models.heads import embedding_classifier
from landmark.models.losses import logits_of


class FlipAveraged(nn.Module):
    """Averages a model's outputs for an image and its mirror image (test-time augmentation)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean logits (n, classes) of normalized images (n, 3, size, size), or the mean embeddings (n, d).

        For an embedding model, the logits are those of the mean embedding.
        """
        both = torch.cat([images, images.flip(3)])
        classifier = embedding_classifier(self.model)
        if classifier is None or classifier.gives_embeddings:
            return halves_mean(logits_of(self.model(both)))
        classifier.gives_embeddings = True
        try:
            embeddings = halves_mean(self.model(both))
        finally:
            classifier.gives_embeddings = False
        return classifier.forward(embeddings)  # not the module, whose hooks keep the embeddings of both images


def halves_mean(values: torch.Tensor) -> torch.Tensor:
    """Return the means (n, d) of the rows i and n + i of values (2n, d)."""
    first, second = values.chunk(2)
    return (first + second) / 2


class Ensemble(nn.Module):
    """Averages the probabilities of several models of the same classes and the same input."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the mean probabilities, float32 (n, classes)."""
        logs = [logits_of(model(images)).float().log_softmax(1) for model in self.models]
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))
