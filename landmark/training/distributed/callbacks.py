"""Callbacks of Ray Train's controller: before it changes the number of workers, and after an out-of-memory kill."""

import contextlib
import time
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

from landmark.out_of_memory import killed_for_memory
from landmark.training.distributed.monitor import ANSWER_S

PEAK_STEPS = 100
"""Number of steps after which a worker's memory use has reached its peak."""
SAVE_S = 60.0
"""Maximum seconds that a resize waits for a checkpoint. Between steps, workers check for requests every few seconds."""
POLL_S = 0.2


class MemoryWatch(ray.train.UserCallback):
    """Ends a run if Ray kills a worker for lack of memory within its first steps, because a restart would fail again.

    Runs in Ray Train's controller. A worker that is killed later is replaced: the run made progress, so other processes
    may have used the memory. Not used for trials, because other trials of the study may use the memory.
    """

    def __init__(self, run_monitor: Any, remedy: str) -> None:
        self.run_monitor = run_monitor
        self.remedy = remedy

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Check the workers' errors for an out-of-memory kill."""
        killed = next(filter(None, map(killed_for_memory, worker_exceptions.values())), None)
        if killed is None:
            return
        with contextlib.suppress(ray.exceptions.RayError):
            steps = [heartbeat.step for _, heartbeat in ray.get(self.run_monitor.seen.remote(), timeout=ANSWER_S)]
            if max(steps, default=0) < PEAK_STEPS:
                self.run_monitor.give_up.remote(f"{killed}; {self.remedy}, or place fewer workers on a node")


class SaveBeforeResize(ControllerCallback):
    """Makes the workers of an elastic run save a checkpoint before Ray Train changes their number, so no step is lost.

    A resize kills the workers, and the run resumes from its last checkpoint. Ray calls this after it decides to resize.
    Its control loop waits for the call.
    """

    def __init__(self, run_monitor: Any) -> None:
        self.run_monitor = run_monitor

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Request a checkpoint and wait for it if a resize is about to start."""
        if isinstance(current_state, ResizingState):
            with contextlib.suppress(ray.exceptions.RayError):
                self._save()

    def _save(self) -> None:
        until = time.monotonic() + SAVE_S
        number = ray.get(self.run_monitor.request_save.remote(), timeout=ANSWER_S)
        while time.monotonic() < until and not ray.get(self.run_monitor.needless.remote(number), timeout=ANSWER_S):
            time.sleep(POLL_S)
