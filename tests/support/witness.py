"""Runs that write down each step's draws, to be killed and counted afterwards, in tests and benchmarks of faults."""

import collections
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from landmark.data.loading.progress import Position

BY_RUN = "steps"
"""Folder below a host's temporary one, in which runs have folders by their paths."""
STEP_S = 0.02
"""How long a step takes at least, so that a kill finds it."""
STEP_ON_HOSTS_S = 0.1
"""The same where it is found from without, by a poll and a command."""


def write_down(folder: Path) -> None:
    """Make this process append the epoch and the draws of every step to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    _witness(lambda: folder, STEP_S)


def write_down_by_run() -> None:
    """Make a worker of Ray Train append its steps to a file on its host's own disk, in a folder by the run's path in its bucket.

    For jobs of several hosts: Ray calls it in each process, as the runtime environment's worker_process_setup_hook.
    """

    def folder() -> Path:
        import ray.train

        run = ray.train.get_context().get_storage().storage_fs_path
        made = Path(tempfile.gettempdir()) / BY_RUN / run.lstrip("/") / "witness"
        made.mkdir(parents=True, exist_ok=True)
        return made

    _witness(functools.cache(folder), STEP_ON_HOSTS_S)


def _witness(folder: Callable[[], Path], step_s: float) -> None:
    advance = Position.advance

    def advanced(self: Position, draws: np.ndarray) -> None:
        advance(self, draws)
        with (folder() / f"{os.getpid()}.log").open("a") as log:
            log.write(f"{self.epoch} {' '.join(map(str, draws.tolist()))}\n")
        time.sleep(step_s)

    Position.advance = advanced  # type: ignore[method-assign]


def witnessed_work(values: dict[str, Any]) -> None:
    """Train in a worker of Ray Train, every step written down in the run's folder."""
    from landmark.training.distributed import ray_train

    write_down(Path(values["run"]) / "witness")
    ray_train._work(values)


def steps_seen(*runs: Path) -> int:
    """Return how many steps were written down, over all processes."""
    return sum(path.read_text().count("\n") for run in runs for path in run.glob("witness/*.log"))


def consumed(*runs: Path) -> dict[int, collections.Counter[int]]:
    """Return how often each draw was consumed in each epoch, over all processes and attempts, in a run's folders."""
    found: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for path in (path for run in runs for path in run.glob("witness/*.log")):
        for line in path.read_text().splitlines():
            epoch, *draws = map(int, line.split())
            found[epoch].update(draw for draw in draws if draw >= 0)
    return found


def main(arguments: list[str]) -> int:
    """Run `landmark …` with every step written down, in this process or in its workers."""
    from landmark.cli import main as landmark
    from landmark.training.distributed import ray_train

    output, name = (arguments[arguments.index(flag) + 1] for flag in ("--output", "--name"))
    write_down(Path(output) / name / "witness")
    ray_train._work = witnessed_work
    ray_train.RESIZE_S = 5.0
    return landmark(arguments)


if __name__ == "__main__":
    import sys

    # Once more under the module's own name: what is pickled by reference must be found by the workers.
    from tests.support.witness import main as run

    sys.exit(run(sys.argv[1:]))
