"""The board: an actor beside the driver that takes the workers' lines, their moves, and what ends the run for good."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:  # torch comes with it: seconds until the board's process is there
    from landmark.training.session import Phase

BEAT_S = 1.0
SILENT_S = 5 * BEAT_S
"""Seconds without a beat after which a process counts as stopped: its pulse does not wait for its loop."""
ANSWER_S = 20.0
"""Seconds that the board may take to answer: longer, and its node is busy or gone."""


@dataclass(kw_only=True)
class Beat:
    """What a worker tells of itself once a second."""

    rank: int
    node: str
    """Ray's id of its node."""
    host: str
    pid: int
    moves: int
    """How often its loop got on to something else."""
    phase: "Phase"
    step: int
    """Steps that it began."""


class Board:
    """Lines for the person who watches, a mistake that no restart mends, and each worker's last beat."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fatal: str | None = None
        self.beats: dict[int, tuple[float, Beat]] = {}
        self.save_asked = self.save_answered = 0

    def put(self, line: str) -> None:
        """Take a line."""
        self.lines.append(line)

    def take(self) -> list[str]:
        """Give the lines that came since the last call."""
        lines, self.lines = self.lines, []
        return lines

    def give_up(self, message: str) -> None:
        """Take the message of a mistake that a restart would repeat; the first one counts."""
        self.fatal = self.fatal or message

    def verdict(self) -> str | None:
        """Give that message."""
        return self.fatal

    def start(self, rank: int) -> None:
        """Forget what a rank's process before this one told."""
        self.beats.pop(rank, None)

    def beat(self, beat: Beat) -> int:
        """Take a worker's beat; returns the number of a request to save that waits, 0 for none."""
        self.beats[beat.rank] = (time.monotonic(), beat)
        return self.save_asked if self.save_asked > self.save_answered else 0

    def ask_save(self) -> int:
        """Take a request to save; returns its number."""
        self.save_asked += 1
        return self.save_asked

    def saved(self, number: int) -> None:
        """Take note that a request to save was met."""
        self.save_answered = max(self.save_answered, number)

    def needless(self, number: int) -> bool:
        """Return whether a request to save was met, or cannot be or need not: no worker lives, or all steps were saved to validate."""
        now = time.monotonic()
        phases = {beat.phase for at, beat in self.beats.values() if now - at < SILENT_S}
        return self.save_answered >= number or phases <= {"validating", "validated"}

    def seen(self) -> list[tuple[float, Beat]]:
        """Give each worker's last beat and the seconds since."""
        now = time.monotonic()
        return [(now - at, beat) for at, beat in self.beats.values()]


def new_board() -> ray.actor.ActorHandle:
    """Start a board on this process's own node, which the run does not outlive."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


@contextlib.contextmanager
def printed_lines(board: ray.actor.ActorHandle, poll_s: float = 1.0) -> Iterator[None]:
    """Print the board's lines in this process while the block runs."""
    done = threading.Event()

    def show() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # a busy board has the lines at the next call
            for line in ray.get(board.take.remote(), timeout=ANSWER_S):
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


def verdict_of(board: ray.actor.ActorHandle) -> str | None:
    """Return the message of a mistake that a restart would repeat; None where there is none, or no answer."""
    try:
        return ray.get(board.verdict.remote(), timeout=ANSWER_S)
    except ray.exceptions.RayError:
        return None


class Pulse:
    """A worker's side: beats once a second from a thread of its own, whatever the loop is waiting for."""

    def __init__(self, board: ray.actor.ActorHandle, rank: int) -> None:
        import os
        import socket

        self.board = board
        node = ray.get_runtime_context().get_node_id()
        self.beat = Beat(
            rank=rank, node=node, host=socket.gethostname(), pid=os.getpid(), moves=0, phase="starting", step=0
        )
        self.save_asked = 0
        """Number of a request to save that waits, 0 for none."""
        self._storing = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="landmark-pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        self.board.start.remote(self.beat.rank)
        while not self._ended.wait(BEAT_S):
            # Storage has its own deadline, so that what it does comes to an end.
            self.beat.moves += self._storing > 0
            with contextlib.suppress(ray.exceptions.RayError):
                answered, _ = ray.wait([self.board.beat.remote(self.beat)], timeout=BEAT_S)
                self.save_asked = ray.get(answered[0]) if answered else self.save_asked

    def saved(self) -> None:
        """Tell the board that a request to save was met."""
        if self.save_asked:
            self.board.saved.remote(self.save_asked)
            self.save_asked = 0

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Count as alive while the block waits for storage, or for whoever takes a report: neither is the worker's fault."""
        self._storing += 1
        try:
            yield
        finally:
            self._storing -= 1

    def moved(self, phase: "Phase") -> None:
        """Note that the loop got on to `phase`."""
        self.beat.moves += 1
        self.beat.step += phase == "in a step"
        self.beat.phase = phase
