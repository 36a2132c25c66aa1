"""Optimizers of a matrix of which a step changes some rows: state and arithmetic of those rows alone."""

from collections.abc import Iterator

import torch

from landmark.config import OptimizerConfig

CHUNK_ROWS = 1024
"""Rows that are updated at a time on a CPU, whose caches hold them."""
GPU_CHUNK_ROWS = 1 << 15
"""Rows that are updated at a time on a GPU: 64 MiB at 512 values, so that launching kernels is not what takes the time."""
STATE = {
    "sgd": ("momentum",),
    "rmsprop": ("square",),
    "adam": ("mean", "square", "updates"),
    "adamw": ("mean", "square", "updates"),
}
"""Tensors that an optimizer keeps for a matrix; `updates` counts those of each row, the others have a value a weight."""
BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
RMSPROP_ALPHA, RMSPROP_EPSILON = 0.9, 1e-7


def rows_per_chunk(device: torch.device) -> int:
    """Return how many rows are worked on at a time."""
    return GPU_CHUNK_ROWS if device.type == "cuda" else CHUNK_ROWS


class RowOptimizer:
    """Updates rows of a matrix by the rules of `build_optimizer`'s optimizers, as if the other rows did not exist.

    A row that is never touched keeps its weights: neither decay nor momentum moves it meanwhile. When all rows are
    touched at every step the updates are those of torch's dense optimizers. Adam corrects each row's bias by the row's own
    number of updates. first, rows: the range of the matrix's rows that it has state for.
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
        """Take a step with `factor` times the gradient (n, …), which is changed, of the rows `ids`, int64 (n,), each named once."""
        with torch.no_grad():
            size = rows_per_chunk(self.weight.device)
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                rows = self.weight[part]
                of_rows = gradient[start : start + size]
                # A factor on a GPU is not compared with 1: the host would wait for it.
                unscaled = not isinstance(factor, torch.Tensor) and factor == 1
                self._step(rows, of_rows if unscaled else of_rows.mul_(factor), part - self.first, lr)
                self.weight.index_copy_(0, part, rows)

    def _step(self, rows: torch.Tensor, gradient: torch.Tensor, places: torch.Tensor, lr: float) -> None:
        """Change rows in place, and the gradient."""
        decoupled = self.config.name == "adamw"
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
        """Nesterov's momentum, as torch has it; plain where there is none."""
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
        """Move an average towards a value, and return a copy of its rows."""
        average = self.state[name][places].lerp_(value, 1 - kept)
        self.state[name].index_copy_(0, places, average)
        return average

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each tensor of the state with its name; their rows are those from `first` on."""
        yield from self.state.items()
