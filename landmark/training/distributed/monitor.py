"""Run monitor: an actor on the driver's node that receives the workers' messages, heartbeats and permanent errors."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:  # importing it imports torch, which delays the actor's start by seconds
    from landmark.training.loop.session import Phase

HEARTBEAT_S = 1.0
HEARTBEAT_TIMEOUT_S = 5 * HEARTBEAT_S
"""Seconds without a heartbeat after which a process counts as stopped. The training loop does not delay heartbeats."""
ANSWER_S = 20.0
"""Maximum seconds for a reply of the monitor. A longer delay means that its node is overloaded or lost."""


@dataclass(kw_only=True)
class Heartbeat:
    """Heartbeat that a worker sends once per second."""

    rank: int
    node: str
    """Ray's ID of the worker's node."""
    host: str
    pid: int
    moves: int
    """Number of phase changes of its training loop."""
    phase: "Phase"
    step: int
    """Number of steps that it started."""


class RunMonitor:
    """Messages for the user, an error that a restart cannot fix, and the last heartbeat of each worker."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fatal: str | None = None
        self.heartbeats: dict[int, tuple[float, Heartbeat]] = {}
        self.save_requested = self.save_answered = 0

    def put(self, line: str) -> None:
        """Add a message."""
        self.lines.append(line)

    def take(self) -> list[str]:
        """Return the messages since the last call."""
        lines, self.lines = self.lines, []
        return lines

    def give_up(self, message: str) -> None:
        """Record an error that would recur after a restart. The first one is kept."""
        self.fatal = self.fatal or message

    def error_line(self) -> str | None:
        """Return the recorded error, or None."""
        return self.fatal

    def start(self, rank: int) -> None:
        """Remove the heartbeat of a rank's previous process."""
        self.heartbeats.pop(rank, None)

    def heartbeat(self, heartbeat: Heartbeat) -> int:
        """Record a worker's heartbeat. Returns the number of a pending request for a checkpoint, or 0."""
        self.heartbeats[heartbeat.rank] = (time.monotonic(), heartbeat)
        return self.save_requested if self.save_requested > self.save_answered else 0

    def request_save(self) -> int:
        """Request a checkpoint. Returns the number of the request."""
        self.save_requested += 1
        return self.save_requested

    def saved(self, number: int) -> None:
        """Mark a request for a checkpoint as done."""
        self.save_answered = max(self.save_answered, number)

    def needless(self, number: int) -> bool:
        """Return whether a requested checkpoint is stored, impossible or unnecessary.

        It is impossible if no worker is alive, and unnecessary if the workers saved all steps before they validate.
        """
        now = time.monotonic()
        phases = {heartbeat.phase for at, heartbeat in self.heartbeats.values() if now - at < HEARTBEAT_TIMEOUT_S}
        return self.save_answered >= number or phases <= {"validating", "validated"}

    def seen(self) -> list[tuple[float, Heartbeat]]:
        """Return each worker's last heartbeat and the seconds since then."""
        now = time.monotonic()
        return [(now - at, heartbeat) for at, heartbeat in self.heartbeats.values()]


def new_board() -> ray.actor.ActorHandle:
    """Start a monitor on this process's node. The monitor needs to live only as long as this process."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(RunMonitor).remote()


@contextlib.contextmanager
def printed_lines(run_monitor: ray.actor.ActorHandle, poll_s: float = 1.0) -> Iterator[None]:
    """Print the monitor's messages in this process while the block runs."""
    done = threading.Event()

    def show() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # an overloaded monitor keeps them for the next call
            for line in ray.get(run_monitor.take.remote(), timeout=ANSWER_S):
                print(line, flush=True)

    def watch() -> None:
        while not done.wait(poll_s):
            show()

    thread = threading.Thread(target=watch, name="landmark-relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show()


def error_of(run_monitor: ray.actor.ActorHandle) -> str | None:
    """Return the error that would recur after a restart, or None if there is none or the monitor does not reply."""
    try:
        return ray.get(run_monitor.error_line.remote(), timeout=ANSWER_S)
    except ray.exceptions.RayError:
        return None


class HeartbeatSender:
    """Sends a worker's heartbeat once per second, from a thread that does not depend on the training loop."""

    def __init__(self, run_monitor: ray.actor.ActorHandle, rank: int) -> None:
        import os
        import socket

        self.run_monitor = run_monitor
        node = ray.get_runtime_context().get_node_id()
        self.heartbeat = Heartbeat(
            rank=rank, node=node, host=socket.gethostname(), pid=os.getpid(), moves=0, phase="starting", step=0
        )
        self.save_requested = 0
        """Number of a pending request for a checkpoint, or 0."""
        self._storing = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="landmark-pulse", daemon=True)

    def __enter__(self) -> "HeartbeatSender":
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        self.run_monitor.start.remote(self.heartbeat.rank)
        while not self._ended.wait(HEARTBEAT_S):
            # Storage operations have their own timeout, so they count as progress.
            self.heartbeat.moves += self._storing > 0
            with contextlib.suppress(ray.exceptions.RayError):
                answered, _ = ray.wait([self.run_monitor.heartbeat.remote(self.heartbeat)], timeout=HEARTBEAT_S)
                self.save_requested = ray.get(answered[0]) if answered else self.save_requested

    def saved(self) -> None:
        """Report to the monitor that a requested checkpoint is stored."""
        if self.save_requested:
            self.run_monitor.saved.remote(self.save_requested)
            self.save_requested = 0

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Count as alive while the block waits for storage or for the receiver of a report."""
        self._storing += 1
        try:
            yield
        finally:
            self._storing -= 1

    def record_progress(self, phase: "Phase") -> None:
        """Record that the loop entered `phase`."""
        self.heartbeat.moves += 1
        self.heartbeat.step += phase == "in a step"
        self.heartbeat.phase = phase
