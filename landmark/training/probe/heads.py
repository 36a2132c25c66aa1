"""Linear classifiers that are fitted to features: logistic regression, ridge regression and class prototypes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from landmark.config import Recipe
from landmark.models import class_weights, fit_temperature, logit_adjustment

GRIDS = {
    "logistic": tuple(10.0 ** (power / 2) for power in range(-2, -11, -1)),
    "ridge": tuple(10.0 ** (power / 2) for power in range(4, -9, -1)),
}
"""Values of probe.l2 that are tried, from strong to weak."""
MAX_STEPS = 200
TOLERANCE = 1e-5
"""L-BFGS ends when no gradient is above this value."""
MIN_DEVIATION = 1e-6
COSINE_SCALE = 10.0
"""Scale of the logits of prototypes before their temperature is fitted."""


@dataclass(kw_only=True, frozen=True)
class Examples:
    """Features and labels of a split, on the device that fits the classifier."""

    features: torch.Tensor
    """float32 (n, d)."""
    labels: torch.Tensor
    """int64 (n,)."""


@dataclass(kw_only=True, frozen=True)
class Head:
    """A fitted classifier."""

    weight: torch.Tensor
    """float32 (classes, d)."""
    bias: torch.Tensor
    """float32 (classes,)."""
    method: str
    """logistic, ridge or prototypes."""
    l2: float | None = None

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, classes) of features (n, d)."""
        return nn.functional.linear(features, self.weight, self.bias)

    def __str__(self) -> str:
        return self.method if self.l2 is None else f"{self.method}, l2 {self.l2:.2g}"


Beat = Callable[[], object]
"""Called while a classifier is fitted, so that a watchdog sees progress."""


def fit_head(
    train: Examples, val: Examples, counts: np.ndarray, recipe: Recipe, beat: Beat
) -> tuple[Head, dict[str, float]]:
    """Return the classifier of a recipe's probe with the lowest validation loss, and its validation metrics.

    counts: training images per class, int64 (classes,). The logits are scaled by the temperature that minimizes the
    validation loss. The loss decides, not the monitored metric, because it differs between classifiers that are right on
    equally many images of a small split.
    """
    best: tuple[Head, dict[str, float]] | None = None
    classes = len(counts)
    for head in _candidates(train, counts, recipe, beat):
        temperature = fit_temperature(head.logits(val.features), val.labels)
        scaled = {"weight": head.weight / temperature, "bias": head.bias / temperature}
        head = Head(**scaled, method=head.method, l2=head.l2)
        metrics = metrics_of(head.logits(val.features), val.labels, classes)
        if best is None or metrics["val_loss"] < best[1]["val_loss"]:
            best = head, metrics
    assert best is not None
    return best


def metrics_of(logits: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[str, float]:
    """Return val_loss, val_top1, val_top5 and val_macro_recall of logits (n, classes), as `validate` does."""
    correct = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
    hits = torch.bincount(labels, weights=correct[:, 0].double(), minlength=classes)
    support = torch.bincount(labels, minlength=classes)
    present = support > 0
    return {
        "val_loss": float(nn.functional.cross_entropy(logits, labels)),
        "val_top1": float(correct[:, 0].double().mean()),
        "val_top5": float(correct.any(1).double().mean()),
        "val_macro_recall": float((hits[present] / support[present]).mean()),
    }


def _candidates(train: Examples, counts: np.ndarray, recipe: Recipe, beat: Beat) -> Iterator[Head]:
    """Yield the classifiers to choose from, for unscaled features."""
    probe, loss, classes, device = recipe.probe, recipe.loss, len(counts), train.features.device
    methods = ("prototypes", "ridge", "logistic") if probe.head == "auto" else (probe.head,)
    mean = train.features.mean(0)
    # Halfway between the features' own scales, which suit few images, and equal scales, which suit many.
    overall = train.features.std(correction=0)
    deviation = (train.features.std(0, correction=0) * overall).sqrt().clamp(min=MIN_DEVIATION)
    scaled = Examples(features=(train.features - mean) / deviation, labels=train.labels)
    weights = train.features.new_ones(len(train.labels))
    if (per_class := class_weights(counts, loss.class_weights)) is not None:
        weights = torch.from_numpy(per_class).to(device)[train.labels]
    weights = weights / weights.sum()
    adjustment = logit_adjustment(counts, loss.logit_adjustment)
    added = None if adjustment is None else torch.from_numpy(adjustment).to(device)
    for method in methods:
        grid = (probe.l2,) if probe.l2 is not None else GRIDS.get(method, ())
        if method == "prototypes":
            centered = Examples(features=train.features - mean, labels=train.labels)
            length = centered.features.norm(dim=1).mean().clamp(min=MIN_DEVIATION)
            weight = prototypes(centered, classes).weight * (COSINE_SCALE / length)
            yield Head(weight=weight, bias=-weight @ mean, method=method)
            continue
        elif method == "ridge":
            found = ridge(scaled, classes, weights, grid)
        else:
            found = logistic(scaled, classes, weights, grid, beat, added)
        for head in found:
            beat()
            weight = head.weight / deviation
            yield Head(weight=weight, bias=head.bias - weight @ mean, method=head.method, l2=head.l2)


def prototypes(train: Examples, classes: int) -> Head:
    """Return the classifier whose weights are the mean directions of the classes' centered features, of length 1.

    It predicts the class with the largest cosine: SimpleShot's CL2N (Wang et al. 2019, arXiv 1911.04623). A class without
    images has zero weights.
    """
    directions = nn.functional.normalize(train.features)
    sums = directions.new_zeros(classes, directions.shape[1]).index_add_(0, train.labels, directions)
    return Head(weight=nn.functional.normalize(sums), bias=sums.new_zeros(classes), method="prototypes")


def ridge(train: Examples, classes: int, weights: torch.Tensor, grid: tuple[float, ...]) -> Iterator[Head]:
    """Yield the weighted ridge regressions of one-hot targets with each regularization, from one eigendecomposition.

    weights: of the images, with sum 1. The bias is not regularized.
    """
    x = train.features.double()
    y = nn.functional.one_hot(train.labels, classes).double()
    w = weights.double()[:, None]
    x_mean, y_mean = (w * x).sum(0), (w * y).sum(0)
    x, y = x - x_mean, y - y_mean
    values, vectors = torch.linalg.eigh(x.T @ (w * x))
    projected = vectors.T @ (x.T @ (w * y))
    for l2 in grid:
        weight = (vectors @ (projected / (values.clamp(min=0) + l2)[:, None])).T
        bias = y_mean - weight @ x_mean
        yield Head(weight=weight.float(), bias=bias.float(), method="ridge", l2=l2)


def logistic(
    train: Examples,
    classes: int,
    weights: torch.Tensor,
    grid: tuple[float, ...],
    beat: Beat,
    adjustment: torch.Tensor | None = None,
) -> Iterator[Head]:
    """Yield the multinomial logistic regressions with each regularization, each from the one before.

    The objective is the weighted mean cross entropy plus l2 / 2 times the squared norm of the weights, without biases:
    scikit-learn's with C = 1 / (n l2). weights: of the images, with sum 1. adjustment: added to the logits, (classes,).
    """
    weight = train.features.new_zeros(classes, train.features.shape[1], requires_grad=True)
    bias = train.features.new_zeros(classes, requires_grad=True)
    for l2 in grid:
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=MAX_STEPS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
        )

        def loss(l2: float = l2, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            beat()
            optimizer.zero_grad()
            logits = nn.functional.linear(train.features, weight, bias if adjustment is None else bias + adjustment)
            losses = nn.functional.cross_entropy(logits, train.labels, reduction="none")
            total = (weights * losses).sum() + l2 / 2 * weight.square().sum()
            total.backward()
            return total

        optimizer.step(loss)
        yield Head(weight=weight.detach().clone(), bias=bias.detach().clone(), method="logistic", l2=l2)
