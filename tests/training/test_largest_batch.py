"""Tests `--batch-size auto`: the largest batch that the system's memory limit allows, and runs that resume with it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import landmark.training.largest_batch as module
from landmark.cli.commands import COMMANDS
from landmark.config import HeadConfig, ModelConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.training.largest_batch import largest_batch
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.support.runs import small_run

LIMITED = """
import dataclasses, resource, sys
import torch
from landmark.config import LoaderConfig, ModelConfig
from landmark.data.dataset import PackedDataset
from landmark.training.largest_batch import _fits, largest_batch
from landmark.training.loop.state import RunState
from landmark.training.measuring import MeasuringSession
from tests.support.runs import small_run
from pathlib import Path

torch.set_num_threads(1)
dataset = PackedDataset.open(sys.argv[1])
loader = LoaderConfig(image_size=64, batch_size=16)
config = small_run(dataset, Path("unused"), model=ModelConfig(backbone="resnet18"), loader=loader)
assert largest_batch(config, 4) == 4
run = RunState(config, dataset, MeasuringSession())
_fits(run, 2, 64)
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (500 << 20), resource.RLIM_INFINITY))
found = largest_batch(config, 4096)
assert _fits(run, 2, 64) and not _fits(run, 4 * found, 64), found
print("found", found)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [100, 60], "val": [20]})


def test_the_largest_batch_is_the_last_one_that_fits(dataset: PackedDataset) -> None:
    command = [sys.executable, "-c", LIMITED, dataset.location.uri]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert 4 <= int(found.stdout.split()[-1]) <= 512


def test_an_epoch_keeps_ten_steps(dataset: PackedDataset, tmp_path: Path) -> None:
    assert largest_batch(small_run(dataset, tmp_path), 16) == 16


def test_a_run_uses_the_measured_batch_and_resumes_with_it(dataset, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        module, "default_device", lambda: torch.device("cuda")
    )  # the measurement itself runs on the CPU
    config = small_run(dataset, tmp_path, auto_batch_size=True, epochs=1)
    run_training(config)
    assert "batch size: 16 (16 per worker; 32 would leave fewer than 10 steps per epoch)" in capsys.readouterr().out
    assert "batch_size: 16\n" in (tmp_path / "train" / "config.yaml").read_text()
    monkeypatch.setattr(module, "largest_batch", lambda *_: 8)
    again = run_training(dataclasses.replace(config, epochs=2, resume=True))
    assert again.epochs_run == 2 and "batch size" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "flag", [["--batch-size", "auto"], ["--batch-size=auto"], ["--batch_size", "auto"], ["--loader.batch-size", "auto"]]
)
def test_the_flag(flag: list[str]) -> None:
    config = COMMANDS["train"].parser().parse(["nowhere", "--recipe", "modern", *flag])
    assert config.auto_batch_size and config.loader.batch_size == 32
    config = COMMANDS["train"].parser().parse(["nowhere", "--recipe", "modern", "--batch-size", "24"])
    assert not config.auto_batch_size and config.loader.batch_size == 24


def test_without_a_gpu_and_with_options_that_do_not_apply_it_is_one_line(dataset, tmp_path) -> None:
    config = small_run(dataset, tmp_path, auto_batch_size=True)
    with pytest.raises(UserError, match="measures the memory of a GPU, and there is none; give a number"):
        run_training(config)
    with pytest.raises(ValueError, match="headroom ends before"):
        dataclasses.replace(config, headroom=True)
    with pytest.raises(ValueError, match="does not support model.head.sample"):
        dataclasses.replace(config, model=ModelConfig(neck=8, head=HeadConfig(name="cosface", sample=0.5)))
