"""Features and embeddings of a model: the input of its classifier, as it is or L2-normalized."""

from types import TracebackType

import torch
from torch import nn

from landmark.config import UserError
from landmark.models.averaging import FlipAveraged, halves_mean
from landmark.models.heads import Classifier
from landmark.models.losses import logits_of
from landmark.models.stages import TWIN, classifier_path


class Embedder(nn.Module):
    """Returns a model's embeddings: the input of the classifier's last layer, pooled and L2-normalized.

    The model's layers do not change. The constructor puts the model into evaluation mode. flips: the embedding is the mean of
    those of the image and of its mirror image.
    """

    def __init__(self, model: nn.Module, *, flips: bool = False) -> None:
        super().__init__()
        self.model = (FlipAveraged(model) if flips else model).eval()
        self.flips = flips
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
        vectors = pooled(features.float())
        return nn.functional.normalize(halves_mean(vectors) if self.flips else vectors, dim=1)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._features = inputs[0]


class FeatureModel:
    """Returns a model's features: the input of its classifier's last layer. Use it in a `with` statement.

    Raises UserError if the model does not end in one linear layer, because then no linear classifier can be fitted.
    """

    def __init__(self, model: nn.Module, backbone: str) -> None:
        path = classifier_path(model)
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.Linear | Classifier) or path.endswith(TWIN):
            ends = "two linear layers" if path.endswith(TWIN) else type(layer).__name__
            raise UserError(
                f"the features of {backbone} cannot be used, because it ends in {ends} instead of one linear layer; choose another "
                "model.backbone, such as resnet50, or set probe.head to none"
            )
        self.model = model
        self.layer = layer
        self._features: torch.Tensor | None = None

    def __enter__(self) -> "FeatureModel":
        self._hook = self.layer.register_forward_pre_hook(self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hook.remove()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of normalized images (n, 3, size, size), float32 (n, d)."""
        self.model(images)
        features, self._features = self._features, None
        assert features is not None, "the classifier's last layer was not reached"
        return features.float().flatten(1)

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
