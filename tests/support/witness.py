"""Record the visits of each training step, so that tests and benchmarks of faults can count them after a kill."""

import collections
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from landmark.data.loading.progress import EpochProgress

STEPS_FOLDER = "steps"
"""Folder in a host's temporary folder that contains a folder per run path."""
STEP_S = 0.02
"""Minimum duration of a step, so that a kill can hit it."""
HOLD = "hold"
"""File in the folder of a run's folder. While it exists, the run's workers wait after their next step."""
STEP_ON_HOSTS_S = 0.1
"""Minimum duration of a step if other hosts observe the steps by polling."""


def record_steps(folder: Path) -> None:
    """Make this process append the epoch and the visits of each step to its own file."""
    folder.mkdir(parents=True, exist_ok=True)
    _record(lambda: folder, STEP_S)


def record_steps_by_run() -> None:
    """Make a Ray Train worker append its steps to a file on its host's disk, in a folder per run.

    For jobs on several hosts: Ray calls it in each process, as the runtime environment's worker_process_setup_hook.
    """

    def folder() -> Path:
        import ray.train

        run = ray.train.get_context().get_storage().storage_fs_path
        created = Path(tempfile.gettempdir()) / STEPS_FOLDER / run.lstrip("/") / "witness"
        created.mkdir(parents=True, exist_ok=True)
        return created

    _record(functools.cache(folder), STEP_ON_HOSTS_S)


def _record(folder: Callable[[], Path], step_s: float) -> None:
    advance = EpochProgress.advance

    def advanced(self: EpochProgress, visits: np.ndarray) -> None:
        advance(self, visits)
        with (folder() / f"{os.getpid()}.log").open("a") as log:
            log.write(f"{self.epoch} {' '.join(map(str, visits.tolist()))}\n")
        time.sleep(step_s)
        while (folder().parent.parent / HOLD).exists():
            time.sleep(0.02)

    EpochProgress.advance = advanced  # type: ignore[method-assign]


def recording_work(values: dict[str, Any]) -> None:
    """Train in a Ray Train worker that records every step in the run's folder."""
    from landmark.training.distributed import ray_train

    record_steps(Path(values["run"]) / "witness")
    ray_train._work(values)


def steps_seen(*runs: Path) -> int:
    """Return how many steps all processes have recorded."""
    return sum(path.read_text().count("\n") for run in runs for path in run.glob("witness/*.log"))


def consumed(*runs: Path) -> dict[int, collections.Counter[int]]:
    """Return how often each visit was consumed per epoch, over all processes and attempts."""
    found: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for path in (path for run in runs for path in run.glob("witness/*.log")):
        for line in path.read_text().splitlines():
            epoch, *visits = map(int, line.split())
            found[epoch].update(visit for visit in visits if visit >= 0)
    return found


def main(arguments: list[str]) -> int:
    """Run `landmark …` and record every step, in this process or in its workers."""
    from landmark.cli import main as landmark
    from landmark.training.distributed import ray_train

    output, name = (arguments[arguments.index(flag) + 1] for flag in ("--output", "--name"))
    record_steps(Path(output) / name / "witness")
    ray_train._work = recording_work
    ray_train.RESIZE_S = 1.0
    return landmark(arguments)


if __name__ == "__main__":
    import sys

    # Import this module under its own name: workers must find what is pickled by reference.
    from tests.support.witness import main as run

    sys.exit(run(sys.argv[1:]))
