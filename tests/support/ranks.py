"""Ranks of a run as threads of one process, whose collectives exchange tensors in memory."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class World:
    """A number of ranks, `per_node` per node. `run` calls a function for all ranks at the same time."""

    def __init__(self, ranks: int, per_node: int = 1) -> None:
        self.members = [Rank(self, rank, ranks, per_node) for rank in range(ranks)]
        self._inputs: list[torch.Tensor | None] = [None] * ranks
        self._combine: Callable[[list[torch.Tensor]], torch.Tensor] = torch.stack
        self._combined = torch.zeros(0)
        self._all_given = threading.Barrier(ranks, action=self._combine_inputs)
        self._all_taken = threading.Barrier(ranks)

    def _combine_inputs(self) -> None:
        inputs = [values for values in self._inputs if values is not None]
        assert len(inputs) == len(self.members) and len({(values.shape, values.dtype) for values in inputs}) == 1
        self._combined = self._combine(inputs)

    def exchange(
        self, rank: int, values: torch.Tensor, combine: Callable[[list[torch.Tensor]], torch.Tensor]
    ) -> torch.Tensor:
        """Return the combined values of all ranks. All ranks share the result's memory and must not write to it."""
        self._inputs[rank], self._combine = values, combine
        self._all_given.wait()
        combined = self._combined
        self._all_taken.wait()
        return combined

    def run(self, call: Callable[["Rank"], Result]) -> list[Result]:
        """Return the result of each rank. Raises the first error that is not a consequence of another rank's error."""
        found: dict[int, Any] = {}
        errors: list[BaseException] = []

        def work(member: Rank) -> None:
            try:
                found[member.rank] = call(member)
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:
                errors.append(error)
                self._all_given.abort()
                self._all_taken.abort()

        threads = [threading.Thread(target=work, args=(member,)) for member in self.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._all_given.reset()
        self._all_taken.reset()
        if errors:
            raise errors[0]
        return [found[rank] for rank in range(len(self.members))]


class Rank:
    """One rank: implements the session interface that the training code uses."""

    device = torch.device("cpu")
    saves_within_epochs = True
    reports_probe = False

    def __init__(self, world: World, rank: int, world_size: int, per_node: int) -> None:
        self.world = world
        self.rank = rank
        self.world_size = world_size
        self.node_rank, self.local_rank = divmod(rank, per_node)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model itself: these ranks do not average gradients."""
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks."""
        return self.world.exchange(self.rank, values, _sum)

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks."""
        return self.world.exchange(self.rank, values, torch.stack)


def _sum(inputs: list[torch.Tensor]) -> torch.Tensor:
    total = inputs[0].clone()
    for values in inputs[1:]:
        total += values
    return total
