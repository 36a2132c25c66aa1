"""The watch: finds the worker of a run that hangs, says which, and ends it, so that Ray Train replaces it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from landmark.training.board import BEAT_S, Beat

SILENT_S = 5 * BEAT_S
"""Seconds without a beat after which a process counts as stopped: its pulse does not wait for its loop."""
START_S = 600.0
"""Seconds that a worker may take at least to its first step, and for that: models are built, and by option compiled."""


def hung_worker(seen: list[tuple[float, Beat]], stalled: bool) -> Beat | None:
    """Return the worker that the others wait for, if the run stands still.

    All ranks meet in every step, so when one hangs all stand still: it is the one whose process is silent, else
    the one that began the fewest steps, else one that is not in a step where the others are.
    """
    if not stalled or not seen:
        return None
    silent = [beat for since, beat in seen if since > SILENT_S]
    beats = silent or [beat for _, beat in seen]
    return min(beats, key=lambda beat: (beat.step, beat.phase == "in a step", beat.moves, beat.rank))


@contextlib.contextmanager
def watched(board: ray.actor.ActorHandle, stall_s: float, tell: Callable[[str], object]) -> Iterator[None]:
    """End the hung worker of a run that has stood still for `stall_s` seconds, while the block runs; says so first."""
    done = threading.Event()

    def watch() -> None:
        moves: dict[int, tuple[int, int]] = {}
        moved_at = time.monotonic()
        while not done.wait(min(BEAT_S, stall_s / 4)):
            seen = ray.get(board.seen.remote())
            now = {beat.rank: (beat.pid, beat.moves) for _, beat in seen}
            if now != moves:
                moves, moved_at = now, time.monotonic()
            starting = any(beat.step <= 1 for _, beat in seen)
            patience = max(stall_s, START_S) if starting else stall_s
            worker = hung_worker(seen, time.monotonic() - moved_at > patience)
            if worker is not None and not ended(worker):
                tell(
                    f"warning: rank {worker.rank} (process {worker.pid} on {worker.host}) has stood still for {patience:g} s, "
                    f"{worker.phase}, after {worker.step} steps; ending it: the run goes on from its last checkpoint"
                )
                end_process(worker)
                ray.get(board.start.remote(worker.rank))
                moved_at = time.monotonic()

    thread = threading.Thread(target=watch, name="landmark-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def ended(worker: Beat) -> bool:
    """Return whether a worker's process is gone, or its node: Ray Train finds that by itself."""
    return not _signalled(worker, 0)


def end_process(worker: Beat) -> None:
    """Kill a worker's process on its node, as only that reaches one that is stopped."""
    _signalled(worker, signal.SIGKILL)


def _signalled(worker: Beat, number: int) -> bool:
    there = NodeAffinitySchedulingStrategy(worker.node, soft=False)
    try:
        return ray.get(ray.remote(num_cpus=0, scheduling_strategy=there)(_signal).remote(worker.pid, number))
    except ray.exceptions.RayError:
        return False


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
