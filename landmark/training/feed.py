"""Batches on the device: copied while the step before is computed."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from landmark.data.loader import Batch


@dataclass(kw_only=True, frozen=True)
class DeviceBatch:
    """A batch whose pixels and labels lie on the device; on the CPU they share the loader's memory."""

    images: torch.Tensor
    """uint8 (n, size, size, 3), RGB."""
    labels: torch.Tensor
    """int64 (n,)."""
    flip: torch.Tensor | None
    """Images to mirror left to right, bool (n,); None: none."""
    host: Batch
    """The batch as it was loaded."""

    @property
    def draws(self) -> np.ndarray:
        """Number of each image among all that the epoch shows, int64 (n,)."""
        return self.host.draws

    def tensors(self) -> list[torch.Tensor]:
        """Return what lies on the device."""
        return [tensor for tensor in (self.images, self.labels, self.flip) if tensor is not None]


def place(batch: Batch, device: torch.device) -> DeviceBatch:
    """Return the batch on a device: from pinned memory and without waiting for a GPU, as it is for the CPU."""
    return DeviceBatch(
        images=upload(batch.images, device),
        labels=upload(batch.labels, device),
        flip=upload(batch.flip, device) if batch.flip.any() else None,
        host=batch,
    )


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array on a device: the array's own memory on a CPU, else a copy that the host does not wait for."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of this process that batches are copied on to a GPU.

    The allocator keeps freed memory per stream: with a new stream per pass over a split, memory grows with every epoch.
    """
    return torch.cuda.Stream(device)


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """Yield the batches on a device.

    For a GPU a batch is copied on a stream of its own while the GPU still computes the step before: that step's
    kernels were only launched when the next batch is asked for. No batch waits for the one after it.
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
            # Its memory belongs to the copying stream: it must not be given away while the step still reads it.
            tensor.record_stream(computing)
        yield ready
