"""Tests that the profiler writes a trace of the requested steps, and warns if a run is too short."""

import gzip
import json

import torch

from landmark.storage import locate
from landmark.training.observe.profiling import SKIPPED_STEPS, step_profiler


def profile_steps(steps: int, steps_done: int, folder) -> list[str]:
    lines: list[str] = []
    profiler = step_profiler(steps, locate(str(folder)), 0, lines.append)
    assert profiler is not None
    with profiler:
        for number in range(steps_done):
            with torch.profiler.record_function(f"landmark: step {number}"):
                torch.randn(8, 8) @ torch.randn(8, 8)
            profiler.step()
    return lines


def test_the_requested_steps_are_recorded(tmp_path):
    lines = profile_steps(2, SKIPPED_STEPS + 4, tmp_path)
    trace = tmp_path / "profile" / "rank-0.json.gz"
    assert lines == [f"profile: {trace}"]
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    steps = {name for name in names if str(name).startswith("landmark: step")}
    assert steps == {f"landmark: step {SKIPPED_STEPS}", f"landmark: step {SKIPPED_STEPS + 1}"}
    assert "aten::mm" in names


def test_a_run_that_ends_while_recording_writes_a_partial_profile(tmp_path):
    profile_steps(9, SKIPPED_STEPS + 1, tmp_path)
    assert (tmp_path / "profile" / "rank-0.json.gz").exists()


def test_a_run_that_is_too_short_prints_a_warning(tmp_path):
    (line,) = profile_steps(2, 2, tmp_path)
    assert line.startswith("warning: rank 0 wrote no profile") and not (tmp_path / "profile").exists()
    assert step_profiler(0, locate(str(tmp_path)), 0, print) is None
