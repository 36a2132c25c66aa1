"""What a trial takes: memory of a training process, floating-point operations an image; and how many fit side by side."""

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from landmark.config import ModelConfig, Recipe
from landmark.models import build_skeleton, train_mode

GIB = 2**30
PROCESS_BYTES = int(0.85 * GIB)
"""Main memory of a process that has imported what a trial needs, and reads: measured with torch 2.14 and Ray 2.60. Of it 0.4 GiB
are pages of libraries, which the processes of a node share: what fits by this figure fits."""
CUDA_BYTES = int(0.6 * GIB)
"""Memory of a GPU that a process's CUDA context and libraries take; not measured here, where there is none."""
OPTIMIZER_TENSORS = {"sgd": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""Tensors of a weight's size that an optimizer keeps for each trained weight; sgd has none without momentum."""
SHARES = (4, 3, 2)
"""Trials that may share a GPU, the most first."""
HEADROOM = 0.1
"""Share of a device's memory that is left free: allocators lose some of it to fragments."""
FLOAT_BYTES = 4
LOSS_TENSORS = 3
"""Tensors of the logits' size that the loss makes in fp32: logits, their logarithms, the gradient."""
TRIED = 2
"""Images of the pass by which a network is measured: batch norms need more than one."""


@dataclass(kw_only=True, frozen=True)
class Footprint:
    """What a network takes on images of one size. Bytes are those of fp32."""

    weights: int
    """Bytes of its weights and running statistics."""
    trained: int
    """Bytes of the weights that training changes."""
    kept: int
    """Bytes an image that a forward pass keeps for the backward pass."""
    largest: int
    """Bytes an image of its largest output of a layer."""
    flops: float
    """Floating-point operations of an image's forward pass, two a multiplication and addition."""
    parameters: int
    """Number of its weights."""


def trial_footprint(recipe: Recipe, classes: int) -> Footprint:
    """Return what a recipe's network takes on images of its full size; measured on shapes alone, once for each network and size."""
    return _footprint(dataclasses.replace(recipe.model, weights=None), classes, recipe.loader.image_size)


def trial_flops(recipe: Recipe, classes: int) -> float:
    """Return the floating-point operations of one image's forward pass at full size."""
    return trial_footprint(recipe, classes).flops


def trial_memory(recipe: Recipe, classes: int, workers: int, *, gpu: bool = False) -> int:
    """Return the bytes that a training process needs at its peak: of the GPU's memory, or else of main memory.

    The larger of a training and a validation step, over weights, gradients, the optimizer's state, averaged weights, DDP's
    buckets, and what the process has taken before it trains. On CPUs also the checkpoint's copy and the decoded images
    that wait. Half precision counts where it is certain: bf16 or fp16 by name, or on GPUs.
    """
    network = trial_footprint(recipe, classes)
    plain = recipe.optimizer.name == "sgd" and not recipe.optimizer.momentum
    state = 0 if plain else network.trained * OPTIMIZER_TENSORS[recipe.optimizer.name]
    averaged = network.weights if recipe.ema.decay is not None else 0
    buckets = network.trained if workers > 1 else 0
    half = recipe.compute.amp in ("bf16", "fp16") or (gpu and recipe.compute.amp == "auto")
    scale = 0.5 if half else 1.0
    casts = network.weights / 2 if half else 0  # autocast keeps them until the pass is over
    images = _images_at_once(recipe, workers)
    rows = -(-images // recipe.compute.accumulate)
    logits = LOSS_TENSORS * FLOAT_BYTES * classes
    step = rows * (scale * (network.kept + 2 * network.largest) + logits)
    validation = -(-recipe.loader.batch_size // workers) * (scale * 2 * network.largest + logits)
    total = network.weights + network.trained + state + averaged + buckets + casts + max(step, validation)
    if gpu:
        return int(total + CUDA_BYTES)
    decoded = (recipe.loader.prefetch_batches + 2) * images * 3 * recipe.loader.image_size**2
    snapshot = network.weights + averaged + state
    return int(total + PROCESS_BYTES + snapshot + decoded)


def gpu_share(memory: int, gpu_bytes: int) -> float:
    """Return the share of a GPU that a training process of `memory` bytes needs: 1/4, 1/3, 1/2, or 1 where it fits in none."""
    usable = (1 - HEADROOM) * gpu_bytes
    return next((1 / share for share in SHARES if memory <= usable / share), 1.0)


def fitting_in_memory(memory: int, node_bytes: int) -> int:
    """Return how many training processes of `memory` bytes fit a node's memory; 0 where not one does."""
    return int((1 - HEADROOM) * node_bytes // memory)


def _images_at_once(recipe: Recipe, workers: int) -> int:
    """Return a worker's images of a step; where batches are larger while images are small, as many of full size have their pixels."""
    shapes = {recipe.shape(epoch) for epoch in range(1, recipe.epochs + 1)}
    full = recipe.loader.image_size
    return max(math.ceil(-(-batch // workers) * (size / full) ** 2) for size, batch in shapes)


@functools.lru_cache(maxsize=1024)
def _footprint(config: ModelConfig, classes: int, image_size: int) -> Footprint:
    model = build_skeleton(config, classes=classes, image_size=image_size)
    parameters = list(model.parameters())
    kept, largest = _activations(model, image_size)
    return Footprint(
        weights=sum(_size(tensor) for tensor in itertools.chain(parameters, model.buffers())),
        trained=sum(_size(weight) for weight in parameters if weight.requires_grad),
        kept=kept,
        largest=largest,
        flops=_flops(model, image_size),
        parameters=sum(weight.numel() for weight in parameters),
    )


def _activations(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Return the bytes an image that a training pass keeps for its backward pass, and those of its largest output.

    Autograd itself tells what it keeps. Tensors that share their storage count once, weights not at all.
    """
    own = {_storage(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())}
    kept: dict[int, torch.Tensor] = {}
    outputs = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in own:
            kept.setdefault(_storage(tensor), tensor)  # held on to, so that no other tensor gets its storage's address
        return tensor

    def measure(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs.append(_size(output))

    hooks = [module.register_forward_hook(measure) for module in model.modules()]
    train_mode(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(_images(image_size))
    for hook in hooks:
        hook.remove()
    storages = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return storages // TRIED, max(outputs) // TRIED


def _flops(model: nn.Module, image_size: int) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(_images(image_size))
    return counter.get_total_flops() / TRIED


def _images(image_size: int) -> torch.Tensor:
    return torch.empty(TRIED, 3, image_size, image_size, device="meta")


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
