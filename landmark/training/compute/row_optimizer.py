"""Row-wise optimizers: update some rows of a matrix and read or write only the state of those rows."""

from collections.abc import Iterator

import torch

from landmark.config import OptimizerConfig

CHUNK_ROWS = 1024
"""Rows per update on a CPU, so that they fit into its caches."""
GPU_CHUNK_ROWS = 1 << 15
"""Rows per update on a GPU: 64 MiB at 512 values. With fewer rows, kernel launches dominate the time."""
STATE = {
    "sgd": ("momentum",),
    "rmsprop": ("square",),
    "adam": ("mean", "square", "updates"),
    "adamw": ("mean", "square", "updates"),
    "muon": ("mean", "square", "updates"),
}
"""State tensors per matrix. `updates` counts the updates of each row, the others have one value per weight."""
BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
RMSPROP_ALPHA, RMSPROP_EPSILON = 0.9, 1e-7


def rows_per_chunk(device: torch.device) -> int:
    """Return the number of rows per update."""
    return GPU_CHUNK_ROWS if device.type == "cuda" else CHUNK_ROWS


class RowOptimizer:
    """Updates rows of a matrix with the rules of `build_optimizer`'s optimizers, as if the other rows did not exist.

    Rows without an update keep their weights: neither weight decay nor momentum changes them. If all rows are updated
    at every step, the result equals that of torch's dense optimizers. Adam's bias correction uses the row's own number
    of updates. first, rows: range of the matrix's rows that this optimizer has state for.
    """

    def __init__(self, weight: torch.Tensor, config: OptimizerConfig, *, first: int, rows: int) -> None:
        self.weight = weight
        self.config = config
        self.first = first
        self.decay = config.weight_decay if weight.ndim > 1 else 0.0
        self.state = {
            name: weight.new_zeros(rows) if name == "updates" else weight.new_zeros(rows, *weight.shape[1:])
            for name in STATE[config.name]
            if not (name == "momentum" and not config.momentum)
        }

    def update(self, ids: torch.Tensor, gradient: torch.Tensor, lr: float, factor: torch.Tensor | float = 1.0) -> None:
        """Update the rows `ids`, int64 (n,), without duplicates, with `factor` times the gradient (n, …).

        The gradient is modified in place.
        """
        with torch.no_grad():
            size = rows_per_chunk(self.weight.device)
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                rows = self.weight[part]
                of_rows = gradient[start : start + size]
                # A factor on a GPU is not compared with 1, because the host would wait for it.
                unscaled = not isinstance(factor, torch.Tensor) and factor == 1
                self._step(rows, of_rows if unscaled else of_rows.mul_(factor), part - self.first, lr)
                self.weight.index_copy_(0, part, rows)

    def _step(self, rows: torch.Tensor, gradient: torch.Tensor, places: torch.Tensor, lr: float) -> None:
        """Update rows and gradient in place."""
        decoupled = self.config.name in ("adamw", "muon")
        if self.decay and not decoupled:
            gradient.add_(rows, alpha=self.decay)
        if self.config.name == "sgd":
            self._sgd(rows, gradient, places, lr)
        elif self.config.name == "rmsprop":
            square = self._moved("square", places, gradient.square(), RMSPROP_ALPHA)
            rows.addcdiv_(gradient, square.sqrt_().add_(RMSPROP_EPSILON), value=-lr)
        else:
            if self.decay and decoupled:
                rows.mul_(1 - lr * self.decay)
            self._adam(rows, gradient, places, lr)

    def _sgd(self, rows: torch.Tensor, gradient: torch.Tensor, places: torch.Tensor, lr: float) -> None:
        """Update with Nesterov momentum as in torch, or without momentum if it is 0."""
        if momentum := self.config.momentum:
            kept = self.state["momentum"][places].mul_(momentum).add_(gradient)
            self.state["momentum"].index_copy_(0, places, kept)
            gradient.add_(kept, alpha=momentum)
        rows.add_(gradient, alpha=-lr)

    def _adam(self, rows: torch.Tensor, gradient: torch.Tensor, places: torch.Tensor, lr: float) -> None:
        updates = self.state["updates"][places] + 1
        self.state["updates"].index_copy_(0, places, updates)
        mean = self._moved("mean", places, gradient, BETAS[0])
        square = self._moved("square", places, gradient.square(), BETAS[1])
        updates = updates.view(-1, *[1] * (rows.ndim - 1))
        mean.div_(1 - BETAS[0] ** updates)
        square.div_(1 - BETAS[1] ** updates)
        rows.addcdiv_(mean, square.sqrt_().add_(ADAM_EPSILON), value=-lr)

    def _moved(self, name: str, places: torch.Tensor, value: torch.Tensor, kept: float) -> torch.Tensor:
        """Update rows of an exponential average, and return a copy of these rows."""
        average = self.state[name][places].lerp_(value, 1 - kept)
        self.state[name].index_copy_(0, places, average)
        return average

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each state tensor with its name. Their rows correspond to the matrix's rows from `first` on."""
        yield from self.state.items()
