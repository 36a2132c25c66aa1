"""Watchdog: finds the hung worker of a run, reports it, and kills it, so that Ray Train replaces it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from landmark.training.distributed.monitor import ANSWER_S, HEARTBEAT_S, HEARTBEAT_TIMEOUT_S, Heartbeat

START_S = 600.0
"""Minimum timeout until the end of a worker's first step, in which models are built and optionally compiled."""
WAITING = ("in a step", "validated")
"""Phases in which a worker waits for the others."""


def hung_worker(seen: list[tuple[float, Heartbeat]], stalled: bool) -> Heartbeat | None:
    """Return the worker that the others wait for if the run is stalled.

    All ranks synchronize in every step, so one hung rank stalls all. The hung worker is the one without heartbeats,
    else the one that started the fewest steps, else one that is not in a phase where workers wait: a step, or after
    validation.
    """
    if not stalled or not seen:
        return None
    silent = [heartbeat for since, heartbeat in seen if since > HEARTBEAT_TIMEOUT_S]
    heartbeats = silent or [heartbeat for _, heartbeat in seen]
    return min(
        heartbeats, key=lambda heartbeat: (heartbeat.step, heartbeat.phase in WAITING, heartbeat.moves, heartbeat.rank)
    )


@contextlib.contextmanager
def watched(run_monitor: ray.actor.ActorHandle, stall_s: float, tell: Callable[[str], object]) -> Iterator[None]:
    """Kill the hung worker of a run without progress for `stall_s` seconds, while the block runs. Reports it first.

    The watchdog continues after its own errors. It reports the first one.
    """
    done = threading.Event()

    def watch() -> None:
        look, failed = Watchdog(run_monitor, stall_s, tell).look, False
        while not done.wait(min(HEARTBEAT_S, stall_s / 4)):
            try:
                look()
            except Exception as error:
                if not failed:
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    tell(f"warning: the watchdog may miss hung workers: {reason}; trying again")
                failed = True

    thread = threading.Thread(target=watch, name="landmark-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Watchdog:
    """Checks the workers' heartbeats, and kills a worker if the run is stalled."""

    def __init__(self, run_monitor: ray.actor.ActorHandle, stall_s: float, tell: Callable[[str], object]) -> None:
        self.run_monitor = run_monitor
        self.stall_s = stall_s
        self.tell = tell
        self.moves: dict[int, tuple[int, int]] = {}
        self.moved_at = time.monotonic()

    def look(self) -> None:
        """Check once. Raises RayError if the run monitor does not reply."""
        seen = ray.get(self.run_monitor.seen.remote(), timeout=ANSWER_S)
        now = {heartbeat.rank: (heartbeat.pid, heartbeat.moves) for _, heartbeat in seen}
        if now != self.moves:
            self.moves, self.moved_at = now, time.monotonic()
        starting = any(heartbeat.step <= 1 for _, heartbeat in seen)
        patience = max(self.stall_s, START_S) if starting else self.stall_s
        worker = hung_worker(seen, time.monotonic() - self.moved_at > patience)
        if worker is None or ended(worker):
            return
        self.tell(
            f"warning: rank {worker.rank} (process {worker.pid} on {worker.host}) made no progress for {patience:g} s "
            f"({worker.phase}, {worker.step} steps done); killing it. The run resumes from its last checkpoint."
        )
        end_process(worker)
        ray.get(self.run_monitor.start.remote(worker.rank), timeout=ANSWER_S)
        self.moved_at = time.monotonic()


def ended(worker: Heartbeat) -> bool:
    """Return whether a worker's process or node is gone or does not reply. Ray detects these by itself."""
    return not _signalled(worker, 0)


def end_process(worker: Heartbeat) -> None:
    """Kill a worker's process from its node, because only a signal reaches a stopped process."""
    _signalled(worker, signal.SIGKILL)


def _signalled(worker: Heartbeat, number: int) -> bool:
    there = NodeAffinitySchedulingStrategy(worker.node, soft=False)
    try:
        return ray.get(
            ray.remote(num_cpus=0, scheduling_strategy=there)(_signal).remote(worker.pid, number), timeout=ANSWER_S
        )
    except ray.exceptions.RayError:
        return False


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
