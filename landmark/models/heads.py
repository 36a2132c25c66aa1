"""Embedding heads: pooling, neck and classifier that replace a model's last layer. Margins of cosine classifiers."""

import contextlib
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import SqueezeExcitation

from landmark.config import HeadConfig, ModelConfig, UserError
from landmark.models.stages import TWIN

GEM_POWER = 3.0
MIN_GEM = 1e-6
"""Minimum value that GeM raises to its power, as in the authors' code: a power of 0 has no gradient."""
MIN_NORM = 1e-12
"""Minimum norm by which products with a class prototype are divided, as in torch's normalize."""
MIN_SINE = 1e-6
"""Minimum squared sine. The gradient of the angle is infinite if image and class prototype have the same direction."""


class GeM(nn.Module):
    """Generalized-mean pooling with a learned power (Radenovic et al., arXiv 1711.02512, equation 3), in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.full((1,), GEM_POWER))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, d, 1, 1) from maps (n, d, h, w): the root of the mean over positions of the values' powers."""
        with without_autocast(maps):
            raised = maps.float().clamp(min=MIN_GEM).pow(self.power)
            return raised.mean(dim=(2, 3), keepdim=True).pow(1 / self.power)


class Classifier(nn.Module):
    """Last layer of an embedding model: maps embeddings (n, d) to logits (n, classes), linear or scaled cosines.

    weight: (classes, d), or (classes, k, d) for k sub-centers per class. Margins belong to the loss, not to this layer.
    gives_embeddings: if true, `forward` returns its input, and callers compute logits of some classes with `logits`.
    """

    def __init__(self, config: HeadConfig, width: int, classes: int) -> None:
        super().__init__()
        self.scale = config.scale
        self.cosine = config.name != "linear"
        shape = (classes, config.subcenters, width) if config.name == "subcenter" else (classes, width)
        bound = 1 / math.sqrt(width)
        # The linear weight is initialized as in torch, class prototypes with random directions of length about 1.
        weight = torch.randn(shape).mul_(bound) if self.cosine else torch.empty(shape).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)
        self.bias = None if self.cosine else nn.Parameter(torch.empty(classes).uniform_(-bound, bound))
        self.gives_embeddings = False

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the logits of all classes, or the embeddings. Cosines are computed in the weight's precision."""
        if self.gives_embeddings:
            return embeddings
        if not self.cosine:
            return functional.linear(embeddings, self.weight, self.bias)
        with without_autocast(embeddings):
            prototypes = functional.normalize(self.weight, dim=-1).flatten(0, -2)
            directions = functional.normalize(embeddings.to(prototypes.dtype))
            return self._nearest(functional.linear(directions, prototypes))

    def logits(self, embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the logits (n, c) of c classes, given their rows of weight and bias.

        The products are divided by the prototypes' norms. Normalizing the rows would copy many rows, also in the
        backward pass, which takes longer than the products.
        """
        if not self.cosine:
            return functional.linear(embeddings, weight, bias)
        with without_autocast(embeddings):
            prototypes = weight.flatten(0, -2)
            products = functional.linear(functional.normalize(embeddings.to(weight.dtype)), prototypes)
            return self._nearest(products / torch.linalg.vector_norm(prototypes, dim=1).clamp(min=MIN_NORM))

    def _nearest(self, cosines: torch.Tensor) -> torch.Tensor:
        """Return scaled cosines, for sub-centers the maximum per class."""
        if self.weight.ndim == 3:
            cosines = cosines.unflatten(1, (-1, self.weight.shape[1])).amax(2)
        return cosines * self.scale


class NeckNorm(nn.BatchNorm1d):
    """Batch norm that uses running statistics for a batch of one image, which an epoch's end can leave to a worker."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the normalized features."""
        if self.training and len(features) == 1:
            return functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(features)


class EmbeddingHead(nn.Module):
    """Replaces a model's last layer: a neck maps features (n, width) to embeddings, a classifier these to logits."""

    def __init__(self, config: ModelConfig, width: int, classes: int) -> None:
        super().__init__()
        layers = [nn.Linear(width, config.neck, bias=False), NeckNorm(config.neck)] if config.neck else []
        self.neck = nn.Sequential(*layers)
        self.classifier = Classifier(config.head, config.neck or width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.classifier(self.neck(features))


class Margin:
    """Lowers the target logits of scaled cosines during training.

    class_counts: training images per class, int64 (classes,), for dynamic margins.
    """

    def __init__(self, config: HeadConfig, class_counts: np.ndarray | None, device: torch.device) -> None:
        self.scale = config.scale
        self.angular = config.name != "cosface"
        self.margins = torch.tensor(config.own_margin(), device=device)
        if config.min_margin is not None:
            assert class_counts is not None, "dynamic margins need the number of training images per class"
            self.margins = torch.from_numpy(margins_by_size(class_counts, config)).to(device)

    def __call__(self, own: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the lowered target logits, given the target logits (n,).

        cosface: s (cos t - m). arcface: s cos(t + m). If t + m exceeds pi, the cosine would rise again. In that case
        the result is s (cos t - m sin m), as in the authors' code.
        """
        margin = self.margins[labels] if self.margins.ndim else self.margins
        if not self.angular:
            return own - self.scale * margin
        cosine = own / self.scale
        sine = (1 - cosine.square()).clamp(min=MIN_SINE).sqrt()
        widened = cosine * margin.cos() - sine * margin.sin()
        beyond = cosine <= -margin.cos()
        return self.scale * torch.where(beyond, cosine - margin * margin.sin(), widened)

    def on_all(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of all classes with the target logits lowered."""
        own = self(logits.gather(1, labels[:, None])[:, 0], labels)
        return logits.scatter(1, labels[:, None], own[:, None])


def build_margin(config: HeadConfig, class_counts: np.ndarray | None, device: torch.device) -> Margin | None:
    """Return a head's margin for training, or None for a linear head."""
    return None if config.name == "linear" else Margin(config, class_counts, device)


def margins_by_size(class_counts: np.ndarray, config: HeadConfig) -> np.ndarray:
    """Return a margin per class, float32 (classes,): a n^-power + b (Ha et al., arXiv 2010.05350, whose power is 1/4).

    a and b follow from the maximum margin, that of the smallest class, and the minimum margin, that of the largest
    class. A class without images counts as a class with one image.
    """
    most, least = config.own_margin(), config.min_margin
    assert least is not None
    powers = np.maximum(class_counts, 1).astype(np.float64) ** -config.margin_power
    low, high = powers.min(), powers.max()
    if low == high:
        return np.full(len(class_counts), most, np.float32)
    a = (most - least) / (high - low)
    return (a * powers + (least - a * low)).astype(np.float32)


def graft(model: nn.Module, path: str, config: ModelConfig, classes: int) -> None:
    """Replace a model's last layer, at `path`, with pooling, neck and classifier of an embedding model.

    Raises UserError if the model's last layer is not linear, or for GeM if the model has no global average pooling
    layer.
    """
    last = model.get_submodule(path)
    if not isinstance(last, nn.Linear) or path.endswith(TWIN):
        ends = "two linear layers" if path.endswith(TWIN) else type(last).__name__
        raise UserError(
            f"model.head, neck and pooling require a model whose classifier ends in one linear layer, but {config.backbone} ends "
            f"in {ends}; choose another model.backbone, such as resnet50"
        )
    if config.pooling == "gem":
        _replace(model, _pooling_of(model, config.backbone), GeM())
    _replace(model, path, EmbeddingHead(config, last.in_features, classes))


def _pooling_of(model: nn.Module, backbone: str) -> str:
    """Return the path of the layer that averages a model's last map. Pooling layers of channel weights are skipped."""
    channel_weights = {name for name, module in model.named_modules() if isinstance(module, SqueezeExcitation)}
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.AdaptiveAvgPool2d)
        and module.output_size in (1, (1, 1))
        and name.rpartition(".")[0] not in channel_weights
    ]
    if not found:
        raise UserError(
            f"model.pooling is gem, but {backbone} has no global average pooling layer; set model.pooling to avg, or choose another "
            "model.backbone, such as resnet50"
        )
    return found[-1]


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def embedding_classifier(model: nn.Module) -> Classifier | None:
    """Return the classifier of an embedding model, or None for other models."""
    return next((module for module in model.modules() if isinstance(module, Classifier)), None)


def without_autocast(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which operations on a tensor's device keep the precision of their inputs."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()
