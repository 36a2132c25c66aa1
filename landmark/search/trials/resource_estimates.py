"""Resource estimates of trials: memory of a training process, FLOPs per image, and how many trials fit on a device."""

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
from landmark.models.heads import embedding_classifier

GIB = 2**30
PROCESS_BYTES = int(0.85 * GIB)
"""Main memory of a process after the imports of a trial, with a data reader; measured with torch 2.14 and Ray 2.60. It
includes 0.4 GiB of library pages that the processes of a node share, so that the estimate is conservative.
"""
CUDA_BYTES = int(0.6 * GIB)
"""GPU memory that a process's CUDA context and libraries take; an assumption, not measured."""
OPTIMIZER_TENSORS = {"sgd": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "muon": 2}
"""Number of state tensors per trained weight; sgd without momentum has none."""
TRIALS_PER_GPU = (4, 3, 2)
"""Numbers of trials that may share a GPU, largest first."""
HEADROOM = 0.1
"""Fraction of a device's memory that is left free, for fragmentation."""
FLOAT_BYTES = 4
LOSS_TENSORS = 3
"""Tensors of the logits' size that the loss allocates in fp32: logits, log-probabilities, gradient."""
TRIED = (2, 4)
"""Batch sizes of the two measuring passes. Batch norm needs more than one image; two sizes separate the fixed part."""
CHUNK_BYTES = 110 << 20
"""Temporary memory of a sampled head: a chunk of logits and its rows (docs/explanation/scaling.md)."""


@dataclass(kw_only=True, frozen=True)
class Footprint:
    """Memory and compute of a model on images of one size. Bytes are for fp32."""

    weights: int
    """Bytes of the weights and running statistics."""
    trained: int
    """Bytes of the trainable weights."""
    head: int
    """Bytes of the class weights of an embedding model with a sampled head; else 0."""
    fixed: int
    """Bytes that a forward pass saves for the backward pass regardless of the batch, such as normalized class weights."""
    kept: int
    """Bytes per image that a forward pass saves in addition."""
    largest: int
    """Bytes per image of the largest layer output."""
    flops: float
    """Floating-point operations of one image's forward pass; a multiply-add counts as two."""
    parameters: int
    """Number of parameters."""


def trial_footprint(recipe: Recipe, classes: int) -> Footprint:
    """Return the footprint of a recipe's model at full image size; computed once per model and size, on the meta device."""
    return _footprint(dataclasses.replace(recipe.model, weights=None), classes, recipe.loader.image_size)


def trial_flops(recipe: Recipe, classes: int) -> float:
    """Return the floating-point operations of one image's forward pass at full size."""
    return trial_footprint(recipe, classes).flops


def trial_memory(recipe: Recipe, classes: int, workers: int, *, gpu: bool = False) -> int:
    """Return the peak memory of a training process in bytes: GPU memory if gpu, else main memory.

    The peak is the larger of a training and a validation step, plus weights, gradients, optimizer state, averaged weights,
    DDP buckets, and the process's memory before training. On CPUs, it includes the checkpoint's copy and the prefetched
    images. Half precision counts only if it is certain: bf16 or fp16 by name, or `auto` on GPUs.
    """
    network = trial_footprint(recipe, classes)
    plain = recipe.optimizer.name == "sgd" and not recipe.optimizer.momentum
    tensors = 0 if plain else OPTIMIZER_TENSORS[recipe.optimizer.name]
    averaged = network.weights if recipe.ema.decay is not None else 0
    body = network.trained - network.head  # dense gradients; a sampled head's are added below
    buckets = body if workers > 1 else 0
    half = recipe.compute.amp in ("bf16", "fp16") or (gpu and recipe.compute.amp == "auto")
    scale = 0.5 if half else 1.0
    casts = (network.weights - network.head) / 2 if half else 0  # autocast keeps them until the end of the pass
    images = _images_at_once(recipe, workers)
    rows = -(-images // recipe.compute.accumulate)
    logits = 0 if network.head else LOSS_TENSORS * FLOAT_BYTES * classes
    step = rows * (scale * (network.kept + 2 * network.largest) + logits) + network.fixed
    validation = -(-recipe.loader.batch_size // workers) * (scale * 2 * network.largest + logits)
    sampled = CHUNK_BYTES + _sampled_gradient(recipe, network, classes) if network.head else 0
    state = tensors * (body + network.head / workers)
    total = network.weights + body + state + averaged + buckets + casts + max(step + sampled, validation)
    if gpu:
        return int(total + CUDA_BYTES)
    decoded = (recipe.loader.prefetch_batches + 2) * images * 3 * recipe.loader.image_size**2
    snapshot = network.weights + averaged + tensors * network.trained  # rank 0 stores the whole state
    return int(total + PROCESS_BYTES + snapshot + decoded)


def _sampled_gradient(recipe: Recipe, network: Footprint, classes: int) -> float:
    """Return the bytes of a sampled head's gradient in a step; it is kept only for gradient clipping."""
    if recipe.optimizer.clip_norm is None:
        return 0.0
    fraction = (recipe.model.head.sample or 1.0) + recipe.loader.batch_size / classes
    return network.head * min(1.0, fraction)


def gpu_fraction(memory: int, gpu_bytes: int) -> float:
    """Return the fraction of a GPU for a training process of `memory` bytes: the smallest of 1/4, 1/3, 1/2 that fits, or 1."""
    usable = (1 - HEADROOM) * gpu_bytes
    return next((1 / trials for trials in TRIALS_PER_GPU if memory <= usable / trials), 1.0)


def fitting_in_memory(memory: int, node_bytes: int) -> int:
    """Return the number of training processes of `memory` bytes that fit a node's memory, possibly 0."""
    return int((1 - HEADROOM) * node_bytes // memory)


def _images_at_once(recipe: Recipe, workers: int) -> int:
    """Return a worker's images per step, as the number of full-size images with the maximum pixels of any epoch."""
    shapes = {recipe.shape(epoch) for epoch in range(1, recipe.epochs + 1)}
    full = recipe.loader.image_size
    return max(math.ceil(-(-batch // workers) * (size / full) ** 2) for size, batch in shapes)


@functools.lru_cache(maxsize=1024)
def _footprint(config: ModelConfig, classes: int, image_size: int) -> Footprint:
    model = build_skeleton(config, classes=classes, image_size=image_size)
    parameters = list(model.parameters())
    classifier = embedding_classifier(model)
    head = 0
    if classifier is not None and config.head.sample is not None:
        head = sum(_size(weight) for weight in classifier.parameters() if weight.requires_grad)
        classifier.gives_embeddings = True  # a step processes the classes in chunks
    (few, largest), (more, _) = (_activations(model, image_size, images) for images in TRIED)
    kept = (more - few) // (TRIED[1] - TRIED[0])
    return Footprint(
        weights=sum(_size(tensor) for tensor in itertools.chain(parameters, model.buffers())),
        trained=sum(_size(weight) for weight in parameters if weight.requires_grad),
        head=head,
        fixed=max(0, few - TRIED[0] * kept),
        kept=kept,
        largest=largest,
        flops=_flops(model, image_size) + 2 * head / FLOAT_BYTES * (config.head.sample or 0.0),
        parameters=sum(weight.numel() for weight in parameters),
    )


def _activations(model: nn.Module, image_size: int, images: int) -> tuple[int, int]:
    """Return the bytes that a training pass saves for its backward pass, and the bytes per image of the largest output.

    Measured with autograd's saved-tensor hooks. Tensors that share a storage count once; weights do not count.
    """
    own = {_storage(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())}
    kept: dict[int, torch.Tensor] = {}
    outputs = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in own:
            kept.setdefault(_storage(tensor), tensor)  # keep a reference, so that its storage's address is not reused
        return tensor

    def measure(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs.append(_size(output))

    hooks = [module.register_forward_hook(measure) for module in model.modules()]
    train_mode(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(_images(image_size, images))
    for hook in hooks:
        hook.remove()
    storages = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return storages, max(outputs) // images


def _flops(model: nn.Module, image_size: int) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(_images(image_size, TRIED[0]))
    return counter.get_total_flops() / TRIED[0]


def _images(image_size: int, images: int) -> torch.Tensor:
    return torch.empty(images, 3, image_size, image_size, device="meta")


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
