"""Tests that out-of-memory errors and dead Ray processes are one-line errors."""

import dataclasses
import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from landmark.config import LoaderConfig, ModelConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.out_of_memory import out_of_memory
from landmark.training.distributed.failures import memory_errors, ray_errors
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.training.test_run import config

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [24, 16], "val": [10], "test": [10]})


def test_out_of_memory_is_one_line_with_the_peak_and_the_fix(dataset, tmp_path):
    run = config(dataset, tmp_path, model=ModelConfig(backbone="reference_mlp", neck=1 << 40))
    remedy = (
        r"lower loader.batch_size \(16\) or raise compute.accumulate \(1\), which splits each batch into smaller steps"
    )
    with pytest.raises(
        UserError, match=rf"^out of memory: the process used up to [^,]*iB, [^;]*iB more; {remedy}$"
    ) as error:
        run_training(run)
    assert "\n" not in str(error.value)


def error_of(call) -> BaseException:
    with pytest.raises(Exception) as error:  # noqa: PT011
        call()
    return error.value


def test_out_of_memory_errors_are_distinguished_from_others(dataset):
    huge = 1 << 58
    for error in (
        error_of(lambda: np.empty(huge, np.uint8)),
        error_of(lambda: torch.empty(huge, dtype=torch.uint8)),
        error_of(lambda: bytearray(huge)),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):
        assert (out_of_memory(error) or "").startswith("out of memory: the process used up to "), error
    others = (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left"),
        ValueError("x"),
    )
    for error in others:
        assert out_of_memory(error) is None
        with pytest.raises(type(error)), memory_errors(config(dataset, Path())), ray_errors():
            raise error


def test_a_command_that_runs_out_of_memory_prints_one_line():
    code = (
        "import sys, numpy as np\n"
        "from landmark.cli import Parser\n"
        "from landmark.cli.app import run_with\n"
        "from landmark.config import StatusConfig\n"
        "def status(config): np.empty(1 << 58, np.uint8)\n"
        "sys.exit(run_with(Parser(kind=StatusConfig, program='landmark status'), status, []))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("landmark status: error: out of memory: the process used up to ")
    assert line.endswith("use a machine with more memory (see docs/troubleshooting.md#out-of-memory)")


def test_a_reader_that_always_dies_is_a_one_line_error(ray_cluster, dataset, tmp_path, monkeypatch):
    from tests.support.dying import DyingReader

    monkeypatch.setattr("landmark.data.loading.loader.RowGroupReader", DyingReader)
    loader = LoaderConfig(image_size=16, batch_size=16, decode_threads=1, stream="ray")
    run = dataclasses.replace(config(dataset, tmp_path), loader=loader)
    with pytest.raises(
        UserError, match="train epoch 1 part 0: 4 readers died while reading it; .* run the same command with --resume"
    ) as error:
        run_training(run)
    assert "\n" not in str(error.value)


def test_a_controller_killed_for_memory_is_a_one_line_error():
    killed = ray.exceptions.OutOfMemoryError(
        "Memory on the node (IP: 10.0.0.7, ID: 9f) was 15.30GB used / 16.00GB limit (0.95)"
    )
    expected = r"^out of memory: Ray killed a process when 15.30 of 16.00 GB were in use on its node \(10.0.0.7\); run the same command"
    with pytest.raises(UserError, match=expected), ray_errors():
        raise killed
