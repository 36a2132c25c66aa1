"""Shutdown of a study at SIGTERM, within the grace period of `ray job stop`."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from landmark.config import STOPPED

STOP_WAIT_S = 3
"""Ray's default number of seconds from SIGTERM to SIGKILL for a submitted job (RAY_JOB_STOP_WAIT_TIME_S)."""
MARGIN_S = 1.0


class Termination:
    """Whether SIGTERM arrived."""

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def ends_tune(self) -> Iterator[None]:
        """Make SIGTERM end Ray Tune as SIGUSR1 does: running trials stop, and the study can be resumed.

        In a submitted job, this process exits before Ray kills it, even if trials take longer to stop: the journal contains
        all reports. Does nothing outside the main thread, where Python cannot handle signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            if self.requested:
                return
            self.requested = True
            print("landmark tune: SIGTERM: stopping the trials", file=sys.stderr, flush=True)
            if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
                seconds = float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", STOP_WAIT_S))
                timer = threading.Timer(max(1.0, seconds - MARGIN_S), _exit_now)
                timer.daemon = True
                timer.start()
            os.kill(os.getpid(), signal.SIGUSR1)

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _exit_now() -> None:
    print(f"landmark tune: error: {STOPPED}", file=sys.stderr, flush=True)
    os._exit(75)
