"""Embeddings: L2-normalized input of a model's classifier."""

import torch
from torch import nn

from landmark.models.losses import logits_of
from landmark.models.stages import classifier_path


class Embedder(nn.Module):
    """Returns a model's embeddings: the input of the classifier's last layer, pooled and L2-normalized.

    The model's layers do not change. The constructor puts the model into evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()
        self._features: torch.Tensor | None = None
        classifier_of(model).register_forward_pre_hook(self._keep)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of normalized images (n, 3, size, size) as float32 (n, d), each of length 1."""
        return self.with_logits(images)[0]

    def with_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings, float32 (n, d), and logits, (n, classes), from one forward pass."""
        logits = logits_of(self.model(images))
        return self.last(), logits

    def last(self) -> torch.Tensor:
        """Return the embeddings of the model's last forward pass. Each pass's embeddings can be read once."""
        features, self._features = self._features, None
        assert features is not None, "the classifier's last layer was not reached"
        return nn.functional.normalize(pooled(features.float()), dim=1)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._features = inputs[0]


def classifier_of(model: nn.Module) -> nn.Module:
    """Return the last layer of a model's classifier. For embedding models this is the layer after the neck."""
    return model.get_submodule(classifier_path(model))


def pooled(features: torch.Tensor) -> torch.Tensor:
    """Return features (n, d): the mean over positions of maps (n, d, h, w), or over tokens (n, t, d)."""
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.ndim == 3 else features
