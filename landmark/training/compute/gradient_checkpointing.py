"""Gradient checkpointing (compute.gradient_checkpointing): blocks store only their inputs and are recomputed."""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from landmark.config import UserError
from landmark.models.stages import classifier_path


def checkpoint_blocks(model: nn.Module, backbone: str) -> None:
    """Make each block of a model recompute its activations in the backward pass.

    The model is changed in place, without new names of weights. Raises UserError for a model without blocks, such as
    VGG.
    """
    found = blocks(model)
    if len(found) < 2:
        raise UserError(
            f"compute.gradient_checkpointing is true, but {backbone} has no blocks to recompute; "
            "choose another model.backbone, or use compute.accumulate"
        )
    for block in found:
        block.forward = functools.partial(_forward, block, block.forward)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the largest modules that contain no sequence of similar modules, without classifier and single layers."""
    return list(_blocks(model, "", classifier_path(model)))


def _blocks(module: nn.Module, path: str, head: str) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        full = f"{path}{name}"
        if full == head:
            continue
        if head.startswith(f"{full}.") or _repeats(child):
            yield from _blocks(child, f"{full}.", head)
        elif _is_composite(child):
            yield child


def _repeats(module: nn.Module) -> bool:
    """Return whether a module contains a sequence with several modules of one type other than nn.Sequential."""
    for sequence in module.modules():
        if isinstance(sequence, nn.Sequential | nn.ModuleList):
            parts = [type(part) for part in sequence if _is_composite(part) and not isinstance(part, nn.Sequential)]
            if parts and max(collections.Counter(parts).values()) > 1:
                return True
    return False


def _is_composite(module: nn.Module) -> bool:
    parts = (child for name, child in module.named_children() if name != "parametrizations")
    return any(next(part.parameters(), None) is not None for part in parts)


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a block. In training its activations are not stored, and torch restores random state and autocast later."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _still_statistics(block)


@contextlib.contextmanager
def _still_statistics(block: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged: the first forward pass already updated them with this batch."""
    norms = [
        (module, module.momentum, module.num_batches_tracked)
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    for norm, _, _ in norms:
        # Statistics stay enabled, because torch checks that both passes save the same tensors.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counter in norms:
            norm.momentum, norm.num_batches_tracked = momentum, counter
