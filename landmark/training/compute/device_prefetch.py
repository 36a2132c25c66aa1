"""Device prefetch: copies the next batch to the device while the previous step runs."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from landmark.data.loading.loader import Batch


@dataclass(kw_only=True, frozen=True)
class DeviceBatch:
    """A batch with pixels and labels on the device. On a CPU they share the loader's memory."""

    images: torch.Tensor
    """uint8 (n, size, size, 3), RGB."""
    labels: torch.Tensor
    """int64 (n,)."""
    flip: torch.Tensor | None
    """Images to flip horizontally, bool (n,). None: no image."""
    host: Batch
    """The batch as loaded."""

    @property
    def visits(self) -> np.ndarray:
        """Index of each image in the order of the epoch, int64 (n,)."""
        return self.host.visits

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors on the device."""
        return [tensor for tensor in (self.images, self.labels, self.flip) if tensor is not None]


def place(batch: Batch, device: torch.device) -> DeviceBatch:
    """Return the batch on a device. For a GPU, the copy is asynchronous and uses pinned memory."""
    return DeviceBatch(
        images=upload(batch.images, device),
        labels=upload(batch.labels, device),
        flip=upload(batch.flip, device) if batch.flip.any() else None,
        host=batch,
    )


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array on a device: a view of the array's memory on a CPU, else an asynchronous copy."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the process's only stream for copying batches to a GPU.

    The allocator keeps freed memory per stream. With a new stream per pass over a split, memory would grow every epoch.
    """
    return torch.cuda.Stream(device)


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """Yield the batches on a device.

    For a GPU, a separate stream copies the batch while the GPU still computes the previous step. The previous step's
    kernels were only launched when the loop requests the next batch. No batch waits for the one after it.
    """
    if device.type != "cuda":
        for batch in batches:
            yield place(batch, device)
        return
    copies = copy_stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            ready = place(batch, device)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copies)
        for tensor in ready.tensors():
            # The memory belongs to the copy stream. The allocator must not reuse it while the step reads it.
            tensor.record_stream(computing)
        yield ready
