"""Cross entropy and top-k predictions over many classes in chunks, without the logits of all classes in memory."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from landmark.models.heads import Classifier, Margin

CHUNK_LOGITS = 1 << 19
"""Logits per chunk on a CPU, counting sub-centers: 2 MiB in fp32, and 16 MiB of prototypes at 64 images, 512 values."""
GPU_CHUNK_LOGITS = 1 << 24
"""Logits per chunk on a GPU: 64 MiB in fp32. Smaller chunks spend their time launching kernels."""


@dataclass(kw_only=True, frozen=True)
class PartialSoftmax:
    """Partial results of a softmax over some of the classes, for each image: (n,) each."""

    log_sum: torch.Tensor
    """Logarithm of the sum of the logits' exponentials; -inf for no class."""
    own: torch.Tensor
    """Logit of the image's own class after the margin; 0 if the class is not among these."""
    own_plain: torch.Tensor
    """Logit of the image's own class before the margin."""
    most: torch.Tensor
    """Maximum logit before the margin; -inf for no class."""
    total: torch.Tensor
    """Sum of the logits."""

    @classmethod
    def none(cls, embeddings: torch.Tensor) -> "PartialSoftmax":
        """Return the partial results of no class, for embeddings (n, d)."""
        least, zero = (embeddings.new_full((len(embeddings),), value) for value in (-torch.inf, 0.0))
        return cls(log_sum=least, own=zero, own_plain=zero, most=least, total=zero)

    def stacked(self) -> torch.Tensor:
        """Return the values as (5, n)."""
        return torch.stack([self.log_sum, self.own, self.own_plain, self.most, self.total])

    @classmethod
    def joined(cls, stacked: torch.Tensor) -> "PartialSoftmax":
        """Combine the partial results of disjoint sets of classes, given as (sets, 5, n)."""
        log_sum, own, own_plain, most, total = stacked.unbind(1)
        return cls(
            log_sum=log_sum.logsumexp(0),
            own=own.sum(0),
            own_plain=own_plain.sum(0),
            most=most.amax(0),
            total=total.sum(0),
        )


@dataclass(kw_only=True, frozen=True)
class Targets:
    """Targets of the loss for each image."""

    labels: torch.Tensor
    """Class, int64 (n,), on the CPU. Computations with labels run there, so that the host never waits for a GPU."""
    weights: torch.Tensor
    """Loss weight per image, (n,), on the embeddings' device."""


@dataclass(kw_only=True, frozen=True)
class RowGradient:
    """Gradient with respect to some classes' rows of a classifier's weight and bias."""

    ids: torch.Tensor
    """Classes, int64 (c,)."""
    weight: torch.Tensor
    """(c, …)."""
    bias: torch.Tensor | None
    """(c,)."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the gradients by name."""
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})


class ChunkedCrossEntropy:
    """Softmax cross entropy of embeddings over the classes `ids`, computed in chunks, and its gradient.

    embeddings: fp32 (n, d). ids: int64 (c,), sorted, on the CPU. combine: combines the partial results of these classes
    with those of the other ranks' classes. classes: total number of classes in the softmax, for label smoothing.
    """

    def __init__(
        self,
        classifier: Classifier,
        embeddings: torch.Tensor,
        ids: torch.Tensor,
        targets: Targets,
        *,
        margin: Margin | None,
        label_smoothing: float,
        classes: int,
        combine: Callable[[PartialSoftmax], PartialSoftmax],
    ) -> None:
        self.classifier = classifier
        self.embeddings = embeddings.detach().requires_grad_()
        self.targets = targets
        self.margin = margin
        self.smoothing = label_smoothing
        self.classes = classes
        self.parts = ids.split(_chunk_classes(classifier, len(embeddings))) if len(ids) else ()
        # The graph of a single chunk is kept. Several chunks are recomputed for the gradient to save memory.
        self._kept = self._chunk(ids) if len(self.parts) == 1 else None
        chunks = [chunk.partial().stacked() for chunk in self._chunks()]
        self.partial = combine(PartialSoftmax.joined(torch.stack([PartialSoftmax.none(embeddings).stacked(), *chunks])))

    def losses(self) -> torch.Tensor:
        """Return each image's loss, (n,), without its weight."""
        smooth = self.partial.total / self.classes
        return self.partial.log_sum - (1 - self.smoothing) * self.partial.own - self.smoothing * smooth

    def hits(self) -> torch.Tensor:
        """Return whether no class has a greater logit than the image's own, bool (n,), margins excluded."""
        return self.partial.own_plain >= self.partial.most

    def gradient(self, take: Callable[["RowGradient"], object]) -> torch.Tensor:
        """Return the gradient of the weighted sum of losses with respect to the embeddings, (n, d).

        take: receives the gradient with respect to some classes' weight and bias, once per class in total. It may
        modify the gradient.
        """
        of_embeddings = torch.zeros_like(self.embeddings)
        for chunk in self._chunks():
            inputs = [self.embeddings, chunk.rows, *([] if chunk.bias is None else [chunk.bias])]
            found = torch.autograd.grad(chunk.logits, inputs, self._of_logits(chunk))
            of_embeddings += found[0]
            take(RowGradient(ids=chunk.ids, weight=found[1], bias=found[2] if len(found) > 2 else None))
        return of_embeddings

    def _of_logits(self, chunk: "_Chunk") -> torch.Tensor:
        """Return the gradient with respect to a chunk's logits: softmax minus target."""
        weights = self.targets.weights
        gradient = (chunk.logits.detach() - self.partial.log_sum[:, None]).exp_()
        if self.smoothing:
            gradient -= self.smoothing / self.classes
        gradient[chunk.images, chunk.places] -= 1 - self.smoothing
        return gradient.mul_(weights[:, None])

    def _chunks(self) -> Iterator["_Chunk"]:
        if self._kept is not None:
            yield self._kept
        else:
            yield from map(self._chunk, self.parts)

    def _chunk(self, ids: torch.Tensor) -> "_Chunk":
        # Computed on the CPU: on a GPU, the host would wait for the number of matching images.
        labels = self.targets.labels
        places = torch.searchsorted(ids, labels).clamp_(max=len(ids) - 1)
        images = torch.nonzero(ids[places] == labels)[:, 0]
        ids, images, places, labels = (self._placed(each) for each in (ids, images, places[images], labels[images]))
        rows = self.classifier.weight.detach()[ids].requires_grad_()
        whole = self.classifier.bias
        bias = None if whole is None else whole.detach()[ids].requires_grad_()
        with torch.enable_grad():
            plain = self.classifier.logits(self.embeddings, rows, bias)
            logits = plain
            if self.margin is not None:
                own = self.margin(plain[images, places], labels)
                logits = plain.index_put((images, places), own)
        return _Chunk(ids=ids, rows=rows, bias=bias, plain=plain.detach(), logits=logits, images=images, places=places)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a CPU tensor to the embeddings' device without waiting for the copy."""
        device = self.embeddings.device
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@dataclass(kw_only=True, frozen=True)
class _Chunk:
    """Logits of some classes, with their graph."""

    ids: torch.Tensor
    rows: torch.Tensor
    bias: torch.Tensor | None
    plain: torch.Tensor
    """Logits (n, c) before margins."""
    logits: torch.Tensor
    """Logits (n, c)."""
    images: torch.Tensor
    """Indices of the images whose own class is among these."""
    places: torch.Tensor
    """Columns of these images' classes."""

    def partial(self) -> PartialSoftmax:
        logits = self.logits.detach()
        own, own_plain = logits.new_zeros(2, len(logits))
        own[self.images] = logits[self.images, self.places]
        own_plain[self.images] = self.plain[self.images, self.places]
        return PartialSoftmax(
            log_sum=logits.logsumexp(1), own=own, own_plain=own_plain, most=self.plain.amax(1), total=logits.sum(1)
        )


@dataclass(kw_only=True, frozen=True)
class Ranking:
    """Top-k predictions of images and the values that their probabilities are computed from."""

    values: torch.Tensor
    """Logits of the predictions, best first, (n, k)."""
    classes: torch.Tensor
    """Classes of the predictions, int64 (n, k)."""
    log_sum: torch.Tensor
    """Logarithm of the sum of all logits' exponentials, (n,)."""
    own: torch.Tensor
    """Logit of the image's label, (n,); 0 if it has no label."""


def ranking_of(logits: torch.Tensor, labels: torch.Tensor, top_k: int) -> Ranking:
    """Return the top-k predictions from logits (n, classes). labels: as for `ranking`."""
    best = logits.topk(top_k, dim=1)
    own = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return Ranking(
        values=best.values,
        classes=best.indices,
        log_sum=logits.logsumexp(1),
        own=torch.where(labels >= 0, own, 0.0),
    )


def ranking(classifier: Classifier, embeddings: torch.Tensor, labels: torch.Tensor, top_k: int) -> Ranking:
    """Return the top-k predictions of the exact softmax over all classes, computed in chunks.

    embeddings: (n, d). labels: int64 (n,), negative for an image without a class.
    """
    size = _chunk_classes(classifier, len(embeddings))
    parts = []
    for first in range(0, len(classifier.weight), size):
        weight = classifier.weight[first : first + size]
        bias = None if classifier.bias is None else classifier.bias[first : first + size]
        logits = classifier.logits(embeddings.float(), weight, bias)
        here = torch.where((labels >= first) & (labels < first + len(weight)), labels - first, -1)
        part = ranking_of(logits, here, min(top_k, len(weight)))
        parts.append(dataclasses.replace(part, classes=part.classes + first))
    values, classes = torch.cat([part.values for part in parts], 1), torch.cat([part.classes for part in parts], 1)
    best = values.topk(top_k, dim=1)
    return Ranking(
        values=best.values,
        classes=classes.gather(1, best.indices),
        log_sum=torch.stack([part.log_sum for part in parts]).logsumexp(0),
        own=torch.stack([part.own for part in parts]).sum(0),
    )


def _chunk_classes(classifier: Classifier, images: int) -> int:
    """Return the number of classes per chunk for this number of images."""
    prototypes = classifier.weight[0].numel() // classifier.weight.shape[-1]
    logits = GPU_CHUNK_LOGITS if classifier.weight.device.type == "cuda" else CHUNK_LOGITS
    return max(1, logits // max(1, images * prototypes))
