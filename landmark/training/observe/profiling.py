"""Profiling: records some steps of a run with torch.profiler and stores the trace in the run's folder."""

import gzip
import tempfile
from pathlib import Path
from typing import Any

import torch

from landmark.checkpoints.store import Tell
from landmark.storage import Location

FOLDER = "profile"
"""Folder of the traces, below the run's folder."""
SKIPPED_STEPS = 5
"""Steps before the recorded ones. The first steps allocate memory, select algorithms and compile."""


class StepProfiler:
    """Records `steps` steps of one rank after SKIPPED_STEPS, and writes profile/rank-N.json.gz for ui.perfetto.dev."""

    def __init__(self, steps: int, run: Location, rank: int, tell: Tell) -> None:
        self.steps = steps
        self.place = run / FOLDER / f"rank-{rank}.json.gz"
        self.tell = tell
        self.rank = rank
        self._written = False
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(
            activities=kinds,
            schedule=torch.profiler.schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> "StepProfiler":
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        if not self._written:
            self.tell(
                f"warning: rank {self.rank} wrote no profile: the run ended within its first {SKIPPED_STEPS} steps, which are "
                "not recorded"
            )

    def step(self) -> None:
        """Mark the end of a step."""
        self._profile.step()

    def _write(self, profile: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory(prefix="landmark-profile-") as folder:
            path = Path(folder, "trace.json")
            profile.export_chrome_trace(str(path))
            self.place.write_bytes(gzip.compress(path.read_bytes()))
        self._written = True
        if self.rank == 0:
            self.tell(f"profile: {self.place}")


def step_profiler(steps: int, run: Location, rank: int, tell: Tell) -> StepProfiler | None:
    """Return a run's profiler, or None if it records no step."""
    return StepProfiler(steps, run, rank, tell) if steps else None
