"""Peer of the Ray Data stream in benchmarks/ingest.py: reader actors that the training process calls directly."""

import contextlib
import itertools
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import pyarrow as pa

from landmark.config import UserError
from landmark.data.loading.plan import ReadTask
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.loading.reader import RowGroupReader

CALL_ROWS = 256
"""Minimum rows per call of a reader actor."""
AHEAD = 4
"""Calls in progress, in addition to the one that is waited for."""

PATIENCE_S = 900
"""Timeout of a call, seconds. It allows the cluster to start a node for the actor."""
RETRIES = 3
"""Maximum retries of a call after its actor died. A call that kills its actor each time ends the run."""
GRACE_S = 3.0
"""Seconds that `close` waits for outstanding calls."""


class ActorPool:
    """Actors of one class, called round-robin, on any node with available CPUs.

    Ray restarts an actor that died and repeats its calls. Each call has one result, however often it runs. The actors
    end when they are closed, or with the process that created them. Requires a connected Ray.
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
            # Set explicitly. Otherwise Ray would use the placement group of the caller, which has no bundle for these
            # actors.
            "scheduling_strategy": "SPREAD" if spread else "DEFAULT",
        }
        self.description = f"{count} x {cpus:g} CPUs for {purpose}"
        self._actors: list[Any] = [ray.remote(made).options(**options).remote(*arguments) for _ in range(count)]
        self._turns: Iterator[Any] = itertools.cycle(self._actors)
        self._under_way: dict[Any, Any] = {}
        """The actor of each outstanding call, by object reference."""

    def submit(self, method: str, *arguments: Any) -> "RemoteFuture":
        """Call a method of the next actor. Large arguments go through the object store."""
        actor = next(self._turns)
        reference = getattr(actor, method).remote(*arguments)
        self._under_way[reference] = actor
        return RemoteFuture(reference, self)

    def answered(self, reference: Any) -> None:
        """Remove a call from the outstanding calls."""
        self._under_way.pop(reference, None)

    def close(self) -> None:
        """Stop the actors when they have responded, or after GRACE_S. Hung actors are killed."""
        import ray

        calls, self._under_way = self._under_way, {}
        if calls and ray.is_initialized():
            _, hung = ray.wait(list(calls), num_returns=len(calls), timeout=GRACE_S, fetch_local=False)
            for actor in {calls[reference] for reference in hung}:
                ray.kill(actor)
            if hung:
                # Retrieve the errors. Otherwise Ray would print each of them.
                for reference in ray.wait(hung, num_returns=len(hung), timeout=GRACE_S, fetch_local=False)[0]:
                    with contextlib.suppress(ray.exceptions.RayError):
                        ray.get(reference, timeout=0)
        self._actors = []
        self._turns = itertools.cycle([])


class RemoteFuture:
    """An outstanding call of an actor."""

    def __init__(self, reference: Any, actors: ActorPool) -> None:
        self._reference = reference
        self._actors = actors
        self._until: float | None = None

    def result(self, timeout: float | None = None) -> Any:
        """Return the actor's result, without copying large buffers out of the object store.

        Raises TimeoutError after `timeout` seconds. Raises UserError if the actor raised one, or if no actor responds.
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
                f"no response from a Ray actor for {PATIENCE_S} s; check that the cluster has {self._actors.description} available"
            ) from None
        except ray.exceptions.RayError as error:
            self._actors.answered(self._reference)
            if (own := own_error(error)) is None:
                raise
            raise own from None

    def done(self) -> bool:
        """Return whether the call has finished."""
        import ray

        return bool(ray.wait([self._reference], timeout=0, fetch_local=False)[0])

    def cancel(self) -> None:
        """Do nothing. `ActorPool.close` ends the call."""


def read_by_actors(
    reader: RowGroupReader, read_tasks: Iterable[ReadTask], stop: Any = None
) -> Generator[pa.Table, None, None]:
    """Yield the tasks' tables in order, as `landmark.data.loading.reader.read_by_thread`."""
    actors = ActorPool(
        RowGroupReader,
        reader.split,
        reader.shards,
        count=1,
        cpus=0.25,
        purpose="readers",
    )
    with contextlib.closing(actors):
        for tables in ordered_prefetch(lambda part: actors.submit("read_all", part), _parts(read_tasks), AHEAD, stop):
            yield from tables


def _parts(read_tasks: Iterable[ReadTask]) -> Iterator[list[ReadTask]]:
    part: list[ReadTask] = []
    for task in read_tasks:
        part.append(task)
        if sum(len(each.rows) for each in part) >= CALL_ROWS:
            yield part
            part = []
    if part:
        yield part
