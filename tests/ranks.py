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
        self._total = torch.zeros(0)
        self._summed = threading.Barrier(ranks, action=self._sum)
        self._taken = threading.Barrier(ranks)

    def _sum(self) -> None:
        first, *others = self._given
        assert first is not None
        self._total = first.clone()
        for other in others:
            assert other is not None and (other.shape, other.dtype) == (first.shape, first.dtype)
            self._total += other

    def all_reduce(self, rank: int, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        self._given[rank] = values
        self._summed.wait()
        total = self._total.clone()
        self._taken.wait()
        return total

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
                self._summed.abort()
                self._taken.abort()

        threads = [threading.Thread(target=work, args=(member,)) for member in self.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._summed.reset()
        self._taken.reset()
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
        return self.world.all_reduce(self.rank, values)
