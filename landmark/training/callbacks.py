"""What Ray Train's controller calls: before it changes the number of workers, and when Ray ends one for its node's memory."""

import contextlib
import time
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

from landmark.outofmemory import killed_for_memory
from landmark.training.board import ANSWER_S

PEAK_STEPS = 100
"""Steps within which a worker's memory has reached its peak."""
SAVE_S = 60.0
"""Seconds that a resize waits at most for a checkpoint; workers look for requests every few seconds, between two steps."""
POLL_S = 0.2


class MemoryWatch(ray.train.UserCallback):
    """Ends a run for good whose worker Ray kills for its node's memory within its first steps: another attempt would end alike.

    Runs in Ray Train's controller. A worker that is killed later is replaced: the run got on, and others may have the memory.
    Not for trials, where others of the study may have it.
    """

    def __init__(self, board: Any, remedy: str) -> None:
        self.board = board
        self.remedy = remedy

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Take note of what the workers raised."""
        killed = next(filter(None, map(killed_for_memory, worker_exceptions.values())), None)
        if killed is None:
            return
        with contextlib.suppress(ray.exceptions.RayError):
            steps = [beat.step for _, beat in ray.get(self.board.seen.remote(), timeout=ANSWER_S)]
            if max(steps, default=0) < PEAK_STEPS:
                self.board.give_up.remote(f"{killed}; {self.remedy}, or place fewer workers on a node")


class SaveBeforeResize(ControllerCallback):
    """Has the workers of an elastic run save before Ray Train restarts them as more or fewer, so that no step is lost.

    A resize ends the workers at once: the run resumes from its last checkpoint. Ray calls this between its decision and that;
    its control loop waits meanwhile.
    """

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Ask for a checkpoint and wait for it, if a resize is about to happen."""
        if isinstance(current_state, ResizingState):
            with contextlib.suppress(ray.exceptions.RayError):
                self._save()

    def _save(self) -> None:
        until = time.monotonic() + SAVE_S
        number = ray.get(self.board.ask_save.remote(), timeout=ANSWER_S)
        while time.monotonic() < until and not ray.get(self.board.needless.remote(number), timeout=ANSWER_S):
            time.sleep(POLL_S)
