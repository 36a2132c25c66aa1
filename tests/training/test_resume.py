"""A run that is cut off inside an epoch goes on as if it had not been: the same weights, each image once."""

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
from landmark.data.loading.progress import Position
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
        model=ModelConfig(backbone="deck_cnn_max", dropout=0.3),
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


class CutOff(Exception):
    """The end of a process, as far as one test process can end."""


def cut_off_after(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """End a run after as many steps as comes next in the list; returns the draws of all steps, with their epochs."""
    advance, seen, left = Position.advance, [], list(steps)

    def advanced(self: Position, draws: np.ndarray) -> None:
        advance(self, draws)
        seen.append((self.epoch, draws.tolist()))
        if left and (cut := left[0]) is not None:
            left[0] = cut - 1
            if cut == 1:
                left.pop(0)
                raise CutOff

    monkeypatch.setattr(Position, "advance", advanced)
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
def test_a_run_cut_off_inside_epochs_equals_an_undisturbed_one(dataset, tmp_path, monkeypatch, changes):
    whole, parts = (config(dataset, tmp_path / name, **changes) for name in ("whole", "parts"))
    run_training(whole)
    seen = cut_off_after([3, 4, 5], monkeypatch)
    for _ in range(3):
        with pytest.raises(CutOff):
            run_training(parts)
    result = run_training(parts)
    assert result.epochs_run == 3
    undisturbed = last_weights(tmp_path / "whole")
    for name, tensor in last_weights(tmp_path / "parts").items():
        assert torch.equal(tensor, undisturbed[name]), name
    for epoch in (1, 2, 3):
        draws = [draw for number, step in seen if number == epoch for draw in step]
        # Nothing is left out; only steps after the last checkpoint of every second step come again.
        assert set(draws) == set(range(TRAIN))
        assert len(draws) - TRAIN <= 3 * 2 * parts.shape(epoch)[1]


def test_one_line_and_a_checkpoint_before_it_where_the_loss_is_not_finite(dataset, tmp_path):
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
    (tmp_path / "plain.yaml").write_text("epochs: 3\n")  # a recipe of defaults, as `config` has them
    return [
        *("train", "--dataset", dataset.location.uri, "--output", str(tmp_path), "--name", "train", "--resume"),
        *("--recipe", str(tmp_path / "plain.yaml")),
        *("--model.backbone", "deck_mlp", "--loader.image-size", "16", "--loader.batch-size", "8"),
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
def test_a_process_killed_at_a_step_goes_on_without_losing_an_image(dataset, tmp_path, arguments, number, line):
    run, whole = tmp_path / "train", tmp_path / "whole"
    run_training(
        config(
            dataset,
            whole,
            model=ModelConfig(backbone="deck_mlp"),
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
    # SIGTERM saves the step that it finds; SIGKILL loses what came after the checkpoint of every fifth step, at most
    # one of which was still being stored.
    assert repeated == 0 if number == signal.SIGTERM else repeated <= 10 * 8
    for name, tensor in last_weights(tmp_path).items():
        assert torch.equal(tensor, last_weights(whole)[name]), name
