"""Tests that runs recover from dead or hung workers and resume on a different number of workers."""

import csv
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from landmark.checkpoints.format import read_weights
from landmark.config import (
    CheckpointConfig,
    ComputeConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    UserError,
    WorkersConfig,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.progress import EpochProgress
from landmark.training.distributed import ray_train
from landmark.training.run import run_training
from tests.support.dying import dying_work, validating_work
from tests.support.packed import write_packed
from tests.support.witness import consumed, record_steps, recording_work, steps_seen

TRAIN, BATCH, CHECKPOINT_STEPS, EPOCHS = 160, 16, 4, 3
THREADS = LoaderConfig(image_size=32, batch_size=BATCH, decode_threads=1, stream="thread")
"""For tests in which it does not matter who reads, so that fewer processes start."""


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [100, 60], "val": [20], "test": [9]}, classes=4)


def config(packed: PackedDataset, folder: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        dataset=packed.location.uri,
        output=str(folder),
        epochs=EPOCHS,
        model=ModelConfig(backbone="reference_cnn_max", dropout=0.2),
        optimizer=OptimizerConfig(name="adam", lr=0.001),
        loader=LoaderConfig(image_size=32, batch_size=BATCH, decode_threads=1),
        compute=ComputeConfig(deterministic=True),
        checkpoint=CheckpointConfig(steps=CHECKPOINT_STEPS),
        workers=WorkersConfig(count=2, cpus=1, max_failures=2, stall_s=12),
        tensorboard=False,
        resume=True,
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module", autouse=True)
def _record_all_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_train, "_work", recording_work)
        # One test records the steps of this process; the patch is undone after the module.
        patch.setattr(EpochProgress, "advance", EpochProgress.advance)
        yield


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(folder / "train" / "checkpoints" / f"epoch-{EPOCHS:04d}")


@pytest.fixture(scope="module")
def undisturbed(
    _record_all_steps: None, dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """Return the weights of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_training(config(dataset, folder))
    return weights(folder)


def at_step(run: Path, step: int, act: Callable[[int], None]) -> threading.Thread:
    """Call a function with the PID of the worker that took the last step when all processes have taken `step` steps."""

    def wait() -> None:
        while steps_seen(run) < step:
            time.sleep(0.01)
        logs = sorted(run.glob("witness/*.log"), key=lambda path: path.stat().st_mtime)
        act(int(logs[-1].stem))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_dead_and_hung_workers_are_replaced_within_the_epoch(dataset, tmp_path, undisturbed, capfd):
    killed = at_step(tmp_path / "train", 2 * 15, lambda pid: os.kill(pid, signal.SIGKILL))
    hung = at_step(tmp_path / "train", 2 * 24, lambda pid: os.kill(pid, signal.SIGSTOP))
    result = run_training(config(dataset, tmp_path))
    killed.join()
    hung.join()
    assert result.epochs_run == EPOCHS
    counts = consumed(tmp_path / "train")
    assert all(set(counts[epoch]) == set(range(TRAIN)) for epoch in range(1, EPOCHS + 1))
    repeated = sum(count - 1 for epoch in counts.values() for count in epoch.values())
    assert repeated <= 2 * 2 * CHECKPOINT_STEPS * BATCH
    # Two processes at first, two after the kill, two after the hang.
    assert len(list((tmp_path / "train" / "witness").glob("*.log"))) == 6
    assert capfd.readouterr().out.count("made no progress for 12 s") == 1
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, undisturbed[name]), name


def test_killed_readers_restart_no_worker_and_repeat_no_step(ray_cluster, tmp_path):
    """All readers are killed while those of the training streams have most of the run left to read."""
    packed = write_packed(tmp_path / "packed", {"train": [100, 60], "val": [20], "test": [9]}, classes=4, size=700)
    killed: list[int] = []

    def kill_readers(pid: int) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if "(PartReader)" in str(process.info["cmdline"]):
                killed.append(process.pid)
                process.kill()

    epochs = 12
    thread = at_step(tmp_path / "train", 2 * 12, kill_readers)
    result = run_training(config(packed, tmp_path, epochs=epochs))
    thread.join()
    assert len(killed) >= 2 and result.epochs_run == epochs  # a validation stream may be complete
    counts = consumed(tmp_path / "train")
    assert all(counts[epoch] == dict.fromkeys(range(TRAIN), 1) for epoch in range(1, epochs + 1))
    assert len(list((tmp_path / "train" / "witness").glob("*.log"))) == 2
    assert not (tmp_path / "train" / "position.npz").exists()


def test_a_stored_epoch_is_not_lost_when_its_report_is(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_train, "_work", dying_work)
    run_training(config(dataset, tmp_path, loader=THREADS))
    assert (tmp_path / "train" / "died").exists()
    with (tmp_path / "train" / "history.csv").open() as history:
        assert [int(row["epoch"]) for row in csv.DictReader(history)] == list(range(1, EPOCHS + 1))


def test_a_long_validation_is_no_hang_and_a_kill_in_it_repeats_no_step(ray_cluster, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ray_train, "_work", validating_work)
    packed = write_packed(tmp_path / "packed", {"train": [100, 60], "val": [160], "test": [9]}, classes=4)
    workers = WorkersConfig(count=2, cpus=1, max_failures=1, stall_s=8)
    checkpoint = CheckpointConfig(minutes=None)
    result = run_training(config(packed, tmp_path, epochs=2, workers=workers, checkpoint=checkpoint, loader=THREADS))
    assert result.epochs_run == 2 and (tmp_path / "train" / "died").exists()
    assert "made no progress" not in capfd.readouterr().out
    assert len(list((tmp_path / "train" / "witness").glob("*.log"))) == 2  # the workers after the kill took no step
    counts = consumed(tmp_path / "train")
    assert all(counts[epoch] == dict.fromkeys(range(TRAIN), 1) for epoch in (1, 2))


def test_a_different_number_of_workers_trains_the_remaining_samples(dataset, tmp_path):
    one_worker = dataclasses.replace(config(dataset, tmp_path), workers=WorkersConfig(count=1))
    record_steps(tmp_path / "train" / "witness")
    thread = at_step(tmp_path / "train", 14, lambda pid: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(UserError, match="terminated; saved as checkpoints/epoch-0002-image-"):
        run_training(one_worker)
    thread.join()
    run_training(config(dataset, tmp_path, resume=True))
    counts = consumed(tmp_path / "train")
    assert all(set(counts[epoch].values()) == {1} and len(counts[epoch]) == TRAIN for epoch in range(1, EPOCHS + 1))
