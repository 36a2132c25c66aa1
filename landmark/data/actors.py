"""Long-lived Ray actors that read or decode for one training process, called directly."""

import itertools
from collections.abc import Iterator
from typing import Any

from landmark.config import UserError

PATIENCE_S = 900
"""Seconds after which an actor that has not answered will not: a cluster may have to start a node for it first."""
RETRIES = 3
"""Times that a call is made again because its actor died; one that kills its actor each time ends the run."""


class Actors:
    """Actors of one class, called in turn, on any node with CPUs to spare.

    One that dies is started again, and what it was asked for is asked again: a call has one result, however often it is
    made. They end when they are closed and have done what they were asked, or with the process that made them. Needs a
    connected Ray.
    """

    def __init__(
        self, made: type, *arguments: Any, count: int, cpus: float, purpose: str, spread: bool = False
    ) -> None:
        import ray

        options = {
            "num_cpus": cpus,
            "max_restarts": -1,
            "max_task_retries": RETRIES,
            "max_concurrency": max(1, int(cpus)),
            # Said in words, or a placement group of ours would be asked for what it was not made for.
            "scheduling_strategy": "SPREAD" if spread else "DEFAULT",
        }
        self.told = f"{count} x {cpus:g} CPUs for {purpose}"
        self._actors: list[Any] = [ray.remote(made).options(**options).remote(*arguments) for _ in range(count)]
        self._turns: Iterator[Any] = itertools.cycle(self._actors)

    def submit(self, method: str, *arguments: Any) -> "Call":
        """Call a method of the actor whose turn it is; large arguments go through the object store."""
        return Call(getattr(next(self._turns), method).remote(*arguments), self.told)

    def close(self) -> None:
        """Let go of the actors."""
        # Not ray.kill: Ray would tell the user of each call that was under way.
        self._actors = []
        self._turns = itertools.cycle([])


class Call:
    """A call of an actor that is under way."""

    def __init__(self, reference: Any, told: str) -> None:
        self._reference = reference
        self._told = told

    def result(self) -> Any:
        """Return what the actor answered, without copying large buffers out of the object store.

        Raises UserError where the actor did, or where none answers.
        """
        import ray

        from landmark.runtime import own_error

        try:
            return ray.get(self._reference, timeout=PATIENCE_S)
        except ray.exceptions.GetTimeoutError:
            raise UserError(
                f"no answer for {PATIENCE_S} s from a Ray actor; check that the cluster has {self._told} free"
            ) from None
        except ray.exceptions.RayError as error:
            if (own := own_error(error)) is None:
                raise
            raise own from None

    def cancel(self) -> None:
        """Let go of the result."""
        self._reference = None
