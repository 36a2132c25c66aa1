"""The profiler switch writes a trace of the steps asked for, and says so where there were none."""

import gzip
import json

import torch

from landmark.storage import locate
from landmark.training.observe.profiling import SKIPPED_STEPS, step_profiler


def recorded(steps: int, taken: int, folder) -> list[str]:
    lines: list[str] = []
    profiler = step_profiler(steps, locate(str(folder)), 0, lines.append)
    assert profiler is not None
    with profiler:
        for number in range(taken):
            with torch.profiler.record_function(f"landmark: step {number}"):
                torch.randn(8, 8) @ torch.randn(8, 8)
            profiler.step()
    return lines


def test_the_steps_asked_for_are_recorded(tmp_path):
    lines = recorded(2, SKIPPED_STEPS + 4, tmp_path)
    trace = tmp_path / "profile" / "rank-0.json.gz"
    assert lines == [f"profile: {trace}"]
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    steps = {name for name in names if str(name).startswith("landmark: step")}
    assert steps == {f"landmark: step {SKIPPED_STEPS}", f"landmark: step {SKIPPED_STEPS + 1}"}
    assert "aten::mm" in names


def test_a_run_that_ends_while_recording_leaves_what_it_has(tmp_path):
    recorded(9, SKIPPED_STEPS + 1, tmp_path)
    assert (tmp_path / "profile" / "rank-0.json.gz").exists()


def test_a_run_that_is_too_short_says_so(tmp_path):
    (line,) = recorded(2, 2, tmp_path)
    assert line.startswith("warning: rank 0 wrote no profile") and not (tmp_path / "profile").exists()
    assert step_profiler(0, locate(str(tmp_path)), 0, print) is None
