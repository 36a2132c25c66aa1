"""Micro-batches that fit into the memory: a computation that runs out of memory is repeated in more parts."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from landmark.out_of_memory import out_of_memory
from landmark.training.compute.memory import free_memory

T = TypeVar("T")
STATE_COPIES = 3
"""Copies of the weights that training allocates after the measurement: two of the optimizer and the gradients in buckets."""


def in_fitting_parts(
    compute: Callable[[int], T], parts: int, rows: int, retry: Callable[[str, int], object], device: torch.device
) -> tuple[T, int]:
    """Return the result of a computation, and the number of parts in which it fitted into the memory.

    It is called with `parts`, and after each out-of-memory error with twice as many. retry: called before with the error
    and the new number. rows: images of the batch, the maximum number of parts. Raises the error if there is one image per part.
    """
    while True:
        try:
            return compute(parts), parts
        except (RuntimeError, MemoryError) as error:
            message = out_of_memory(error)
            if message is None or parts >= rows:
                raise
        # Not within the handler, whose traceback holds the activations.
        parts *= 2
        free_memory(device)
        retry(message, parts)


def measured_parts(
    model: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, parts: int
) -> int:
    """Return the number of micro-batches in which a pass over images fits into the memory, from `parts` on.

    The pass leaves no trace: gradients are dropped, and the batch norms' statistics restored. loss: micro-batch -> loss.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    # Memory that training allocates later. It must be free after the pass, too.
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    reserved = [torch.empty_like(weight) for weight in trained for _ in range(STATE_COPIES)]

    def attempt(number: int) -> None:
        for part in images.tensor_split(number):
            loss(part).backward()

    def clear(message: str = "", number: int = 0) -> None:
        model.zero_grad(set_to_none=True)

    _, found = in_fitting_parts(attempt, parts, len(images), clear, images.device)
    clear()
    del reserved
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    return found
