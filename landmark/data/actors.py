"""Long-lived Ray actors that read or decode for one training process, called directly."""

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

from landmark.config import UserError

PATIENCE_S = 900
"""Seconds after which an actor that has not answered will not: a cluster may have to start a node for it first."""
RETRIES = 3
"""Times that a call is made again because its actor died; one that kills its actor each time ends the run."""
GRACE_S = 3.0
"""Seconds that `close` waits for calls under way."""


class Actors:
    """Actors of one class, called in turn, on any node with CPUs to spare.

    One that dies is started again, and what it was asked for is asked again: a call has one result, however often it is
    made. They end when they are closed, or with the process that made them. Needs a connected Ray.
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
        self._under_way: dict[Any, Any] = {}
        """The actor of each call that has not been answered, by the reference of its answer."""

    def submit(self, method: str, *arguments: Any) -> "Call":
        """Call a method of the actor whose turn it is; large arguments go through the object store."""
        actor = next(self._turns)
        reference = getattr(actor, method).remote(*arguments)
        self._under_way[reference] = actor
        return Call(reference, self)

    def answered(self, reference: Any) -> None:
        """Forget a call."""
        self._under_way.pop(reference, None)

    def close(self) -> None:
        """End the actors: once they have answered, and at the latest after GRACE_S. A hung one is killed."""
        import ray

        calls, self._under_way = self._under_way, {}
        if calls and ray.is_initialized():
            _, hung = ray.wait(list(calls), num_returns=len(calls), timeout=GRACE_S, fetch_local=False)
            for actor in {calls[reference] for reference in hung}:
                ray.kill(actor)
            if hung:
                # Looked at, or Ray would report each to the user.
                for reference in ray.wait(hung, num_returns=len(hung), timeout=GRACE_S, fetch_local=False)[0]:
                    with contextlib.suppress(ray.exceptions.RayError):
                        ray.get(reference, timeout=0)
        self._actors = []
        self._turns = itertools.cycle([])


class Call:
    """A call of an actor that is under way."""

    def __init__(self, reference: Any, actors: Actors) -> None:
        self._reference = reference
        self._actors = actors
        self._until: float | None = None

    def result(self, timeout: float | None = None) -> Any:
        """Return what the actor answered, without copying large buffers out of the object store.

        Raises TimeoutError after so many seconds, and UserError where the actor did, or where none answers.
        """
        import ray

        from landmark.runtime import own_error

        if self._until is None:
            self._until = time.monotonic() + PATIENCE_S
        patience = max(0.0, self._until - time.monotonic())
        try:
            answer = ray.get(self._reference, timeout=patience if timeout is None else min(timeout, patience))
            self._actors.answered(self._reference)
            return answer
        except ray.exceptions.GetTimeoutError:
            if timeout is not None and timeout < patience:
                raise TimeoutError from None
            raise UserError(
                f"no answer for {PATIENCE_S} s from a Ray actor; check that the cluster has {self._actors.told} free"
            ) from None
        except ray.exceptions.RayError as error:
            self._actors.answered(self._reference)
            if (own := own_error(error)) is None:
                raise
            raise own from None

    def done(self) -> bool:
        """Return whether the actor has answered."""
        import ray

        return bool(ray.wait([self._reference], timeout=0, fetch_local=False)[0])

    def cancel(self) -> None:
        """Do nothing: `Actors.close` ends the call."""
