"""Partial FC: trains the class prototypes of many classes, sharded over the ranks, on a sample of classes per step.

Each rank owns a range of the classes. It computes their logits for the images of all ranks, and keeps only their
optimizer state. The ranks exchange embeddings and their gradients, never prototypes (Partial FC, An et al., arXiv
2010.05222 and 2203.15565): 2 n d floats for n images, compared with d floats per sampled class for the gradients of
prototypes.

Labels and the sampled classes stay on the CPU. The ranks exchange labels there, so no step waits for a GPU.
"""

import functools
import itertools
import math
from typing import Any

import numpy as np
import torch

from landmark.config import Recipe
from landmark.data.randomness import Stream, generator
from landmark.models import Classifier, Margin
from landmark.models.chunked_cross_entropy import ChunkedCrossEntropy, PartialSoftmax, RowGradient, Targets
from landmark.training.compute.device_prefetch import upload
from landmark.training.compute.row_optimizer import RowOptimizer, rows_per_chunk
from landmark.training.loop.session import Session


def sample_classes(seed: int, step: int, classes: int, fraction: float) -> np.ndarray:
    """Return the classes sampled for a step, sorted: each with probability `fraction`, as a function of (seed, step) only.

    Classes are sampled with replacement and duplicates are dropped, so the work depends on the number of samples and
    not on the number of classes.
    """
    if fraction == 1:
        return np.arange(classes)
    count = math.ceil(math.log1p(-fraction) / math.log1p(-1 / classes)) if classes > 1 else 1
    return np.unique(generator(seed, Stream.SAMPLED_CLASSES, step).integers(0, classes, count))


class PartialFC:
    """Class weights of an embedding model's classifier, trained on samples of the classes.

    Every rank has the whole weight and trains the rows of its own classes. `gather` updates the other ranks' rows for
    validation and checkpoints. After construction the model returns embeddings.
    """

    def __init__(self, classifier: Classifier, recipe: Recipe, session: Session, margin: Margin | None) -> None:
        self.classifier = classifier
        self.session = session
        self.margin = margin
        self.seed = recipe.seed
        self.smoothing = recipe.loss.label_smoothing
        self.classes = len(classifier.weight)
        self.fraction = recipe.model.head.sample or 1.0
        self.two_labels = bool(recipe.augment.mixup or recipe.augment.cutmix)
        bounds = [self.classes * rank // session.world_size for rank in (session.rank, session.rank + 1)]
        self.first, self.stop = bounds
        classifier.requires_grad_(False)  # excludes it from the model's optimizer and from gradient averaging
        classifier.gives_embeddings = True
        matrices = {"weight": classifier.weight, "bias": classifier.bias}
        self.optimizers = {
            name: RowOptimizer(matrix.data, recipe.optimizer, first=self.first, rows=self.stop - self.first)
            for name, matrix in matrices.items()
            if matrix is not None
        }
        self._gradients: list[RowGradient] = []
        self._gathered: dict[str, dict[str, torch.Tensor]] | None = None

    def loss(
        self,
        embeddings: torch.Tensor,
        labels: np.ndarray,
        *,
        second: np.ndarray | None,
        own_weight: float,
        class_weights: np.ndarray | None,
        weight: float,
        step: int,
        batch_size: int,
        lr: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the losses and hits of this rank's images, (n,) each, and the gradient of its embeddings, (n, d).

        labels: int64 (n,). second: mixed-in labels, (n,), or None for images that are not mixed. own_weight: weight of
        the images' own labels, 1 if not mixed. class_weights: weight per image of each class, (classes,). weight: this
        rank's fraction of the step's images, times the number of ranks. step: counted over the run. batch_size: images
        of the step over all ranks. lr: if set, apply the optimizer's step to the classes chunk by chunk, so that memory
        holds the gradient of one chunk only. If None, keep the gradient for `update`.

        A hit is an image whose own class has the greatest logit of the step's classes. For mixed images the label with
        the larger weight counts. The gradient follows DDP's convention: its mean over the ranks is the gradient of the
        step's mean loss.
        """
        self._gathered = None
        scale = weight / len(labels)
        both = np.stack([labels, labels if second is None else second] if self.two_labels else [labels])
        of_class = np.ones(both.shape, np.float32) if class_weights is None else class_weights[both]
        counts = np.array([own_weight, 1 - own_weight], np.float32)[: len(both), None]
        all_embeddings, own = self._gathered_embeddings(embeddings.detach().float(), batch_size)
        all_targets = self._gathered_targets(both, scale * counts * of_class, batch_size)
        ids, count = self._looked_at(all_targets.labels.numpy(), step)
        copies = len(both)
        found = ChunkedCrossEntropy(
            self.classifier,
            all_embeddings.repeat(copies, 1),
            ids,
            all_targets,
            margin=self.margin,
            label_smoothing=self.smoothing,
            classes=count,
            combine=self._combined,
        )
        gradient = found.gradient(self._gradients.append if lr is None else functools.partial(self._apply, lr, 1.0))
        gradient = self._own_rows(gradient.unflatten(0, (copies, -1)).sum(0))[: len(labels)]
        losses, hits = (value.unflatten(0, (copies, -1))[:, own] for value in (found.losses(), found.hits()))
        if class_weights is not None:
            losses = losses * upload(of_class, losses.device)
        if second is None:
            return losses[0], hits[0], gradient
        return own_weight * losses[0] + (1 - own_weight) * losses[1], hits[0 if own_weight >= 0.5 else 1], gradient

    def _max_rows(self, batch_size: int) -> int:
        """Return the rows per rank in an exchange: its part of the step's images plus one, because parts differ."""
        return -(-batch_size // self.session.world_size) + 1

    def _gathered_embeddings(self, embeddings: torch.Tensor, batch_size: int) -> tuple[torch.Tensor, slice]:
        """Return the embeddings of all ranks, (m, d), padded with 0, and the slice of this rank's rows."""
        if self.session.world_size == 1:
            return embeddings, slice(0, len(embeddings))
        max_rows = self._max_rows(batch_size)
        assert len(embeddings) <= max_rows
        padded = torch.nn.functional.pad(embeddings, (0, 0, 0, max_rows - len(embeddings)))
        first = self.session.rank * max_rows
        return self.session.all_gather(padded).flatten(0, 1), slice(first, first + len(embeddings))

    def _gathered_targets(self, labels: np.ndarray, weights: np.ndarray, batch_size: int) -> Targets:
        """Return the targets of all ranks, (copies x m,), from this rank's labels and weights (copies, n).

        Padding rows have label -1 and weight 0. Labels are sent as floats, which are exact up to 16.7 million.
        """
        if self.session.world_size > 1:
            copies, rows = labels.shape
            assert self.classes < 1 << 24
            packed = torch.zeros(2, copies, self._max_rows(batch_size))
            packed[0, :, :rows], packed[1, :, :rows] = torch.from_numpy(labels + 1), torch.from_numpy(weights)
            all_embeddings = self.session.all_gather(packed).permute(1, 2, 0, 3).numpy()
            labels, weights = all_embeddings[0].astype(np.int64) - 1, all_embeddings[1]
        return Targets(
            labels=torch.from_numpy(labels.reshape(-1)),
            weights=upload(weights.astype(np.float32).reshape(-1), self.session.device),
        )

    def _own_rows(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return this rank's rows of a gradient of all ranks' embeddings, (m, d), summed over the ranks."""
        ranks = self.session.world_size
        return gradient if ranks == 1 else self.session.reduce_scatter(gradient.unflatten(0, (ranks, -1)))

    def _looked_at(self, labels: np.ndarray, step: int) -> tuple[torch.Tensor, int]:
        """Return this rank's classes among those of the step, sorted, and the step's number of classes."""
        drawn = sample_classes(self.seed, step, self.classes, self.fraction)
        if self.fraction < 1:
            drawn = np.union1d(drawn, labels[labels >= 0])
        start, stop = np.searchsorted(drawn, [self.first, self.stop])
        return torch.from_numpy(drawn[start:stop]), len(drawn)

    def _combined(self, partial: PartialSoftmax) -> PartialSoftmax:
        """Return the partial softmax results over the classes of all ranks."""
        return (
            partial
            if self.session.world_size == 1
            else PartialSoftmax.joined(self.session.all_gather(partial.stacked()))
        )

    def squared_norm(self) -> torch.Tensor:
        """Return the squared norm of the class weights' gradient over all ranks."""
        tensors = [tensor for each in self._gradients for tensor in each.tensors().values()]
        local = self.classifier.weight.new_zeros(())
        for tensor in tensors:
            local = local + tensor.square().sum()
        return self.session.all_reduce(local) / self.session.world_size**2

    def update(self, lr: float, factor: torch.Tensor | float) -> None:
        """Apply the optimizer's step to the classes with a kept gradient. factor: from gradient clipping."""
        for gradient in self._gradients:
            self._apply(lr, factor, gradient)
        self.forget()

    def forget(self) -> None:
        """Discard the kept gradient."""
        self._gradients = []

    def _apply(self, lr: float, factor: torch.Tensor | float, gradient: RowGradient) -> None:
        # In DDP's convention a gradient is the step's gradient times the number of ranks before it is averaged.
        for name, values in gradient.tensors().items():
            self.optimizers[name].update(gradient.ids, values, lr, factor / self.session.world_size)

    def gather(self) -> None:
        """Update every rank's weight, and collect the optimizers' state on rank 0 for a checkpoint."""
        if self.session.world_size == 1:
            return
        self._gathered = {}
        for name, optimizer in self.optimizers.items():
            self._gather_rows(optimizer.weight[self.first : self.stop].clone(), optimizer.weight)
            whole = {}
            for key, tensor in optimizer.tensors():
                into = tensor.new_empty(self.classes, *tensor.shape[1:]) if self.session.rank == 0 else None
                self._gather_rows(tensor, into)
                if into is not None:
                    whole[key] = into
            self._gathered[name] = whole

    def _gather_rows(self, own: torch.Tensor, into: torch.Tensor | None) -> None:
        """Gather rows of all ranks in chunks. own: the rows of this rank's range."""
        ranks = self.session.world_size
        firsts = [self.classes * rank // ranks for rank in range(ranks + 1)]
        size = rows_per_chunk(own.device)
        for start in range(0, max(stop - first for first, stop in itertools.pairwise(firsts)), size):
            rows = own.new_zeros(size, *own.shape[1:])
            part = own[start : start + size]
            rows[: len(part)] = part
            gathered = self.session.all_gather(rows)
            if into is not None:
                for found, (first, stop) in zip(gathered, itertools.pairwise(firsts), strict=True):
                    theirs = into[first:stop][start : start + size]
                    theirs.copy_(found[: len(theirs)])

    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the optimizers' state for all classes, the same for any number of ranks. On rank 0, after `gather`."""
        if self.session.world_size > 1:
            assert self._gathered is not None
            return self._gathered
        return {name: dict(optimizer.tensors()) for name, optimizer in self.optimizers.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load the part of a state that belongs to this rank's classes."""
        for name, optimizer in self.optimizers.items():
            for key, tensor in optimizer.tensors():
                tensor.copy_(state[name][key][self.first : self.stop])
