"""Tests the error line of a failed trial; only unexpected errors leave a traceback."""

import pytest
import torch

from landmark.config import Recipe, UserError, to_mapping
from landmark.search.trials.trial import failure_line


@pytest.fixture
def trial(tmp_path):
    return {"recipe": to_mapping(Recipe()), "folder": str(tmp_path)}


def too_large() -> Exception:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    return raised.value


@pytest.mark.parametrize("error", [MemoryError(), too_large()], ids=["python", "torch"])
def test_out_of_memory_is_one_line_with_the_settings_that_help(error, trial, tmp_path):
    line = failure_line(error, trial)
    assert line.startswith("out of memory: the process used up to ") and "\n" not in line
    assert "lower loader.batch_size (64) or raise compute.accumulate (1)" in line
    assert not (tmp_path / "traceback.txt").exists()


def test_user_errors_are_one_line_and_other_errors_leave_a_traceback(trial, tmp_path):
    assert failure_line(UserError("no such split; prepare it"), trial) == "no such split; prepare it"
    assert not (tmp_path / "traceback.txt").exists()
    assert failure_line(KeyError("x"), trial).endswith(" (traceback.txt in the trial's folder)")
    assert "KeyError: 'x'" in (tmp_path / "traceback.txt").read_text()
