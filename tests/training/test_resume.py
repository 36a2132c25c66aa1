"""Tests that a run interrupted within an epoch resumes with the same weights and uses each image once."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from landmark.checkpoints.format import read_weights
from landmark.config import (
    CheckpointConfig,
    ComputeConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ResizingConfig,
    SamplingConfig,
    TrainConfig,
    UserError,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.progress import EpochProgress
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.support.witness import consumed, steps_seen

ROOT = Path(__file__).parent.parent.parent
TRAIN = 97


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [60, 37], "val": [21], "test": [23]})


def config(packed: PackedDataset, output: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        dataset=packed.location.uri,
        output=str(output),
        epochs=3,
        model=ModelConfig(backbone="reference_cnn_max", dropout=0.3),
        optimizer=OptimizerConfig(name="adam", lr=0.003),
        loader=LoaderConfig(image_size=32, batch_size=16, decode_threads=1),
        checkpoint=CheckpointConfig(steps=2, minutes=None),
        compute=ComputeConfig(deterministic=True),
        tensorboard=False,
        resume=True,
    )
    return dataclasses.replace(base, **changes)


def last_weights(output: Path, epoch: int = 3) -> dict[str, torch.Tensor]:
    return read_weights(output / "train" / "checkpoints" / f"epoch-{epoch:04d}")


class Interrupted(Exception):
    """Simulates the end of a process within the test process."""


def interrupt_after(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Interrupt runs after the given numbers of steps. Returns the epoch and visits of all steps."""
    advance, seen, remaining = EpochProgress.advance, [], list(steps)

    def advanced(self: EpochProgress, visits: np.ndarray) -> None:
        advance(self, visits)
        seen.append((self.epoch, visits.tolist()))
        if remaining and (steps_left := remaining[0]) is not None:
            remaining[0] = steps_left - 1
            if steps_left == 1:
                remaining.pop(0)
                raise Interrupted

    monkeypatch.setattr(EpochProgress, "advance", advanced)
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling": SamplingConfig(name="balanced")},
        {
            "resizing": ResizingConfig(start_size=16, scale_batch=True),
            "model": ModelConfig(backbone="shufflenet_v2_x0_5"),
        },
    ],
    ids=["uniform", "balanced", "resizing"],
)
def test_a_run_interrupted_within_epochs_equals_an_uninterrupted_one(dataset, tmp_path, monkeypatch, changes):
    uninterrupted, interrupted = (
        config(dataset, tmp_path / name, **changes) for name in ("uninterrupted", "interrupted")
    )
    run_training(uninterrupted)
    seen = interrupt_after([3, 4, 5], monkeypatch)
    for _ in range(3):
        with pytest.raises(Interrupted):
            run_training(interrupted)
    result = run_training(interrupted)
    assert result.epochs_run == 3
    expected = last_weights(tmp_path / "uninterrupted")
    for name, tensor in last_weights(tmp_path / "interrupted").items():
        assert torch.equal(tensor, expected[name]), name
    for epoch in (1, 2, 3):
        visits = [visit for number, step in seen if number == epoch for visit in step]
        # No image is skipped. With a checkpoint every two steps, only steps after the last one are repeated.
        assert set(visits) == set(range(TRAIN))
        assert len(visits) - TRAIN <= 3 * 2 * interrupted.shape(epoch)[1]


def test_a_non_finite_loss_is_a_one_line_error(dataset, tmp_path):
    bad = config(dataset, tmp_path, optimizer=OptimizerConfig(name="sgd", lr=1e12), epochs=1)
    with pytest.raises(
        UserError, match=r"the loss became (nan|inf) in epoch 1 \(step \d+\); lower optimizer.lr"
    ) as error:
        run_training(bad)
    assert "\n" not in str(error.value)


def started(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.support.witness", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def arguments(dataset: PackedDataset, tmp_path: Path) -> list[str]:
    (tmp_path / "plain.yaml").write_text("epochs: 3\n")  # a recipe with the defaults that `config` uses
    return [
        *("train", "--dataset", dataset.location.uri, "--output", str(tmp_path), "--name", "train", "--resume"),
        *("--recipe", str(tmp_path / "plain.yaml")),
        *("--model.backbone", "reference_mlp", "--loader.image-size", "16", "--loader.batch-size", "8"),
        *("--checkpoint.steps", "5", "--no-tensorboard", "--loader.decode-threads", "1", "--compute.deterministic"),
    ]


def wait_for_steps(run: Path, steps: int, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while steps_seen(run) < steps:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGKILL, ""), (signal.SIGTERM, "terminated; saved as checkpoints/")]
)
def test_a_killed_process_resumes_without_losing_an_image(dataset, tmp_path, arguments, number, line):
    run, uninterrupted = tmp_path / "train", tmp_path / "uninterrupted"
    run_training(
        config(
            dataset,
            uninterrupted,
            model=ModelConfig(backbone="reference_mlp"),
            optimizer=OptimizerConfig(),
            loader=LoaderConfig(image_size=16, batch_size=8, decode_threads=1),
            checkpoint=CheckpointConfig(steps=5),
        )
    )
    with started(arguments) as job:
        wait_for_steps(run, 18, job)
        os.kill(job.pid, number)
        _, err = job.communicate(timeout=60)
    assert job.returncode == (-9 if number == signal.SIGKILL else 75)
    assert line in err and "Traceback" not in err
    with started(arguments) as job:
        _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    for counts in consumed(run).values():
        assert set(counts) == set(range(TRAIN))
    repeated = sum(count - 1 for counts in consumed(run).values() for count in counts.values())
    # SIGTERM saves the current step. SIGKILL loses the steps since the last stored checkpoint, at most two intervals of
    # five steps.
    assert repeated == 0 if number == signal.SIGTERM else repeated <= 10 * 8
    for name, tensor in last_weights(tmp_path).items():
        assert torch.equal(tensor, last_weights(uninterrupted)[name]), name
