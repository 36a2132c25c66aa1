"""Embedding models: pooling, neck and classifier in place of a network's own last layer; margins of cosine classifiers."""

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
GEM_LEAST = 1e-6
"""Least value that GeM raises to its power, as in the authors' code: a power of 0 has no gradient."""
LENGTH_LEAST = 1e-12
"""Least length of a centre that its products are divided by, as torch's normalize has it."""
SINE_LEAST = 1e-6
"""Least squared sine: the angle's gradient is infinite where image and centre fall together."""


class GeM(nn.Module):
    """Generalised-mean pooling with a learned power (Radenovic et al., arXiv 1711.02512, equation 3), in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.full((1,), GEM_POWER))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (n, d, 1, 1) of maps (n, d, h, w): the mean of the values' powers over places, and its root."""
        with without_autocast(maps):
            raised = maps.float().clamp(min=GEM_LEAST).pow(self.power)
            return raised.mean(dim=(2, 3), keepdim=True).pow(1 / self.power)


class Classifier(nn.Module):
    """The last layer of an embedding model: embeddings (n, d) to logits (n, classes), linear or scaled cosines.

    weight: (classes, d), or (classes, k, d) for k sub-centres a class. Margins are none of its business: they belong to the
    loss. gives_embeddings: whether it hands its input on, for who computes with `logits` on parts of the classes.
    """

    def __init__(self, config: HeadConfig, width: int, classes: int) -> None:
        super().__init__()
        self.scale = config.scale
        self.cosine = config.name != "linear"
        shape = (classes, config.subcenters, width) if config.name == "subcenter" else (classes, width)
        bound = 1 / math.sqrt(width)
        # Linear as torch initialises it; centres by chance directions of length 1, about.
        weight = torch.randn(shape).mul_(bound) if self.cosine else torch.empty(shape).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)
        self.bias = None if self.cosine else nn.Parameter(torch.empty(classes).uniform_(-bound, bound))
        self.gives_embeddings = False

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the logits of all classes, or the embeddings; cosines in the weight's precision."""
        if self.gives_embeddings:
            return embeddings
        if not self.cosine:
            return functional.linear(embeddings, self.weight, self.bias)
        with without_autocast(embeddings):
            centres = functional.normalize(self.weight, dim=-1).flatten(0, -2)
            directions = functional.normalize(embeddings.to(centres.dtype))
            return self._nearest(functional.linear(directions, centres))

    def logits(self, embeddings: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the logits (n, c) of the c classes whose rows of weight and bias are given.

        Products are divided by the lengths of the centres: rows of length 1, and their gradient, would be copies of many
        rows, which take longer than the products.
        """
        if not self.cosine:
            return functional.linear(embeddings, weight, bias)
        with without_autocast(embeddings):
            centres = weight.flatten(0, -2)
            products = functional.linear(functional.normalize(embeddings.to(weight.dtype)), centres)
            return self._nearest(products / torch.linalg.vector_norm(centres, dim=1).clamp(min=LENGTH_LEAST))

    def _nearest(self, cosines: torch.Tensor) -> torch.Tensor:
        """Return scaled cosines, of a class's centres the greatest."""
        if self.weight.ndim == 3:
            cosines = cosines.unflatten(1, (-1, self.weight.shape[1])).amax(2)
        return cosines * self.scale


class NeckNorm(nn.BatchNorm1d):
    """A batch norm that takes a batch of one image, as the end of an epoch can leave a worker, by its running statistics."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the normalised features."""
        if self.training and len(features) == 1:
            return functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(features)


class EmbeddingHead(nn.Module):
    """What takes the place of a network's last layer: features (n, width) by the neck to embeddings, these to logits."""

    def __init__(self, config: ModelConfig, width: int, classes: int) -> None:
        super().__init__()
        layers = [nn.Linear(width, config.neck, bias=False), NeckNorm(config.neck)] if config.neck else []
        self.neck = nn.Sequential(*layers)
        self.classifier = Classifier(config.head, config.neck or width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.classifier(self.neck(features))


class Margin:
    """Lowers logits of the images' own classes, which makes the loss demand more of them; of scaled cosines.

    class_counts: training images a class, int64 (classes,), for margins by class size.
    """

    def __init__(self, config: HeadConfig, class_counts: np.ndarray | None, device: torch.device) -> None:
        self.scale = config.scale
        self.angular = config.name != "cosface"
        self.margins = torch.tensor(config.own_margin(), device=device)
        if config.margin_least is not None:
            assert class_counts is not None, "margins by class size need the training images a class"
            self.margins = torch.from_numpy(margins_by_size(class_counts, config)).to(device)

    def __call__(self, own: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the lowered logits of logits (n,) of the images' own classes.

        cosface: s (cos t - m). arcface: s cos(t + m), and s (cos t - m sin m) where t + m would pass pi and the cosine would
        rise again, as the authors' code has it.
        """
        margin = self.margins[labels] if self.margins.ndim else self.margins
        if not self.angular:
            return own - self.scale * margin
        cosine = own / self.scale
        sine = (1 - cosine.square()).clamp(min=SINE_LEAST).sqrt()
        widened = cosine * margin.cos() - sine * margin.sin()
        beyond = cosine <= -margin.cos()
        return self.scale * torch.where(beyond, cosine - margin * margin.sin(), widened)

    def on_all(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of all classes with those of the images' own lowered."""
        own = self(logits.gather(1, labels[:, None])[:, 0], labels)
        return logits.scatter(1, labels[:, None], own[:, None])


def build_margin(config: HeadConfig, class_counts: np.ndarray | None, device: torch.device) -> Margin | None:
    """Return a head's margin in training; None for a linear head, which has none."""
    return None if config.name == "linear" else Margin(config, class_counts, device)


def margins_by_size(class_counts: np.ndarray, config: HeadConfig) -> np.ndarray:
    """Return a margin a class, float32 (classes,): a n^-power + b (Ha et al., arXiv 2010.05350, whose power is 1/4).

    a and b follow from the greatest and the least margin, those of the smallest and the largest class. A class without
    images counts as one of 1.
    """
    most, least = config.own_margin(), config.margin_least
    assert least is not None
    powers = np.maximum(class_counts, 1).astype(np.float64) ** -config.margin_power
    low, high = powers.min(), powers.max()
    if low == high:
        return np.full(len(class_counts), most, np.float32)
    a = (most - least) / (high - low)
    return (a * powers + (least - a * low)).astype(np.float32)


def graft(model: nn.Module, path: str, config: ModelConfig, classes: int) -> None:
    """Put pooling, neck and classifier of an embedding model into a network in place of its last layer, at `path`.

    Raises UserError where the network's last layer is not linear, or for GeM where no average over the whole map is a layer.
    """
    last = model.get_submodule(path)
    if not isinstance(last, nn.Linear) or path.endswith(TWIN):
        ends = "two of them" if path.endswith(TWIN) else type(last).__name__
        raise UserError(
            f"model.head, neck and pooling need a network whose classifier ends in one linear layer; {config.backbone}'s ends "
            f"in {ends}: choose another model.backbone, such as resnet50"
        )
    if config.pooling == "gem":
        _replace(model, _pooling_of(model, config.backbone), GeM())
    _replace(model, path, EmbeddingHead(config, last.in_features, classes))


def _pooling_of(model: nn.Module, backbone: str) -> str:
    """Return the path of the layer that averages a network's last map; those that weigh channels are others."""
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
            f"model.pooling is gem, but {backbone} has no layer that averages its last map; choose avg, or another network such "
            "as resnet50"
        )
    return found[-1]


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def embedding_classifier(model: nn.Module) -> Classifier | None:
    """Return the classifier of an embedding model; None for a network with its own."""
    return next((module for module in model.modules() if isinstance(module, Classifier)), None)


def without_autocast(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return the context in which operations on a tensor's device keep their inputs' precision."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()
