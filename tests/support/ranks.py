"""Ranks of a run as threads of one process: real code, whose collectives add up in memory."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class World:
    """As many ranks as are asked for, `per_node` of them on a node; `run` calls a function for each at the same time."""

    def __init__(self, ranks: int, per_node: int = 1) -> None:
        self.members = [Rank(self, rank, ranks, per_node) for rank in range(ranks)]
        self._given: list[torch.Tensor | None] = [None] * ranks
        self._combine: Callable[[list[torch.Tensor]], torch.Tensor] = torch.stack
        self._combined = torch.zeros(0)
        self._given_all = threading.Barrier(ranks, action=self._put_together)
        self._taken_all = threading.Barrier(ranks)

    def _put_together(self) -> None:
        given = [values for values in self._given if values is not None]
        assert len(given) == len(self.members) and len({(values.shape, values.dtype) for values in given}) == 1
        self._combined = self._combine(given)

    def exchange(
        self, rank: int, values: torch.Tensor, combine: Callable[[list[torch.Tensor]], torch.Tensor]
    ) -> torch.Tensor:
        """Return what all ranks' values make together: the same memory for all of them, which nobody writes to."""
        self._given[rank], self._combine = values, combine
        self._given_all.wait()
        combined = self._combined
        self._taken_all.wait()
        return combined

    def run(self, call: Callable[["Rank"], Result]) -> list[Result]:
        """Return each rank's result; raises the first error that is not a consequence of another rank's."""
        found: dict[int, Any] = {}
        errors: list[BaseException] = []

        def work(member: Rank) -> None:
            try:
                found[member.rank] = call(member)
            except threading.BrokenBarrierError:
                pass
            except BaseException as error:
                errors.append(error)
                self._given_all.abort()
                self._taken_all.abort()

        threads = [threading.Thread(target=work, args=(member,)) for member in self.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._given_all.reset()
        self._taken_all.reset()
        if errors:
            raise errors[0]
        return [found[rank] for rank in range(len(self.members))]


class Rank:
    """One of them: what a session of a worker is for the code of training."""

    device = torch.device("cpu")
    saves_within_epochs = True

    def __init__(self, world: World, rank: int, world_size: int, per_node: int) -> None:
        self.world = world
        self.rank = rank
        self.world_size = world_size
        self.node_rank, self.local_rank = divmod(rank, per_node)

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model itself: these ranks take no steps that need averaged gradients."""
        return model

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        return self.world.exchange(self.rank, values, _sum)

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all ranks."""
        return self.world.exchange(self.rank, values, torch.stack)


def _sum(given: list[torch.Tensor]) -> torch.Tensor:
    total = given[0].clone()
    for values in given[1:]:
        total += values
    return total
