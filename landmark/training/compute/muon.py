"""Muon: momentum whose update of each matrix is orthogonalized, for faster training from scratch."""

import math
from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the polynomial that moves all singular values toward 1."""
ITERATIONS = 5
MOMENTUM = 0.95
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of AdamW, for the other weights."""
RMS = 0.2
"""Root mean square of an update at learning rate 1, that of AdamW (Liu et al. 2025, arXiv 2502.16982)."""


class Muon(torch.optim.Optimizer):
    """Muon for groups with `muon`, AdamW for the others (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    Equals torch.optim.Muon with adjust_lr_fn match_rms_adamw, so that one learning rate suits both kinds of weights. torch's accepts
    only matrices. Here, a kernel (out, in, height, width) is a matrix (out, in * height * width). Matrices of the same shape are
    computed together.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "muon": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                by_shape: dict[torch.Size, list[torch.Tensor]] = {}
                for weight in weights:
                    by_shape.setdefault(weight.shape, []).append(weight)
                for same in by_shape.values():
                    self._muon(same, group["lr"])
            else:
                self._adam(weights, group["lr"])

    def _muon(self, weights: list[torch.Tensor], lr: float) -> None:
        """Update weights of one shape."""
        momenta = [self._state(weight, "momentum_buffer") for weight in weights]
        gradients = [gradient for weight in weights if (gradient := weight.grad) is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov
        matrices = orthogonalized(torch.stack([update.flatten(1) for update in updates]))
        scale = RMS * math.sqrt(max(matrices.shape[1:]))
        torch._foreach_add_(
            weights,
            [matrix.view_as(weight) for matrix, weight in zip(matrices, weights, strict=True)],
            alpha=-lr * scale,
        )

    def _adam(self, weights: list[torch.Tensor], lr: float) -> None:
        gradients = [gradient for weight in weights if (gradient := weight.grad) is not None]
        means, squares = ([self._state(weight, name) for weight in weights] for name in ("exp_avg", "exp_avg_sq"))
        steps = [int(self.state[weight].get("step", 0)) + 1 for weight in weights]
        for weight, step in zip(weights, steps, strict=True):
            self.state[weight]["step"] = step
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETAS[1])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [math.sqrt(1 - BETAS[1] ** step) for step in steps])
        torch._foreach_add_(roots, EPSILON)
        torch._foreach_addcdiv_(weights, means, roots, [-lr / (1 - BETAS[0] ** step) for step in steps])

    def _state(self, weight: torch.Tensor, name: str) -> torch.Tensor:
        state = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state[name]


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices (k, m, n) with the same singular vectors, and singular values of about 1 (0.7 to 1.2).

    This is the Newton-Schulz iteration of Muon: X becomes (a + b S + c S^2) X with S = X X^T, in bf16 on GPUs as in the author's code.
    """
    gpu = matrices.device.type == "cuda"
    x = matrices.to(torch.bfloat16 if gpu else torch.float32)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = iterated(x) if gpu else iterated_by_gram(x)
    return (x.mT if tall else x).to(matrices.dtype)


def iterated(x: torch.Tensor) -> torch.Tensor:
    """Return X (k, m, n), m <= n, after the iteration. Rounding errors do not grow, because each step starts at X."""
    for _ in range(ITERATIONS):
        x = _factor(x @ x.mT) @ x
    return x


def iterated_by_gram(x: torch.Tensor) -> torch.Tensor:
    """Return X after the iteration, which reads X only twice. Requires fp32.

    All polynomials of S commute, so their product is computed from small matrices. That takes a quarter of the time for m x 9m, the
    kernels of a ResNet. Errors of S grow about 20,000 times, which only fp32 allows.
    """
    gram = x @ x.mT
    product: torch.Tensor | None = None
    for iteration in range(ITERATIONS):
        factor = _factor(gram)
        product = factor if product is None else factor @ product
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ x


def _factor(gram: torch.Tensor) -> torch.Tensor:
    """Return a + b S + c S^2 of matrices S (k, m, m)."""
    a, b, c = COEFFICIENTS
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
