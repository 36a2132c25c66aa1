"""Tests processes that end during validation: no step is lost or repeated, and SIGTERM is handled."""

import csv
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import landmark.training.loop.fit as fit_module
import landmark.training.loop.validation as validation_module
from landmark.checkpoints.format import load_model
from landmark.config import UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loading.bottleneck import DATA_WAIT, STAGES, stage_metric
from landmark.data.loading.loader import Loader
from landmark.models import fit_temperature
from landmark.storage import locate
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.loop.state import RunState
from landmark.training.loop.validation import predict, validate
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.training.test_resume import TRAIN, Interrupted, config, interrupt_after, last_weights

BATCHES = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [60, 37], "val": [16 * BATCHES], "test": [9]})


def at_batch(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> list[int]:
    """Call a function once, before a batch of the first validation. Returns the batch counts of all validations."""
    taken: list[int] = []

    def interrupted_validate(model: Any, batches: Iterator[Any], *rest: Any) -> dict[str, float]:
        taken.append(0)

        def counted() -> Iterator[Any]:
            for batch in batches:
                if len(taken) == 1 and taken[0] == number:
                    act()
                taken[-1] += 1
                yield batch

        return validate(model, counted(), *rest)

    monkeypatch.setattr(fit_module, "validate", interrupted_validate)
    return taken


def rows(output: Path) -> list[dict[str, str]]:
    timed = {"images_per_s", DATA_WAIT, *map(stage_metric, STAGES), "epoch_seconds"}
    history = csv.DictReader((output / "train" / "history.csv").open())
    return [{key: value for key, value in row.items() if key not in timed} for row in history]


def interrupt() -> None:
    raise Interrupted


@pytest.mark.parametrize("repartition", [False, True])
def test_a_run_interrupted_in_validation_repeats_no_step(dataset, tmp_path, monkeypatch, repartition):
    uninterrupted, interrupted = (
        config(dataset, tmp_path / name, epochs=2) for name in ("uninterrupted", "interrupted")
    )
    run_training(uninterrupted)
    seen, taken = interrupt_after([], monkeypatch), at_batch(monkeypatch, 2, interrupt)
    with pytest.raises(Interrupted):
        run_training(interrupted)
    steps = len(seen)
    if repartition:
        # A different number of workers would partition the epoch again.
        monkeypatch.setattr(RunState, "_division", lambda self, epoch: (1, 16, 7 + epoch))
    run_training(interrupted)
    assert taken == [2, BATCHES, BATCHES]
    assert sorted(visit for epoch, step in seen if epoch == 1 for visit in step) == list(range(TRAIN))
    assert seen[steps][0] == 2
    first, second = rows(tmp_path / "uninterrupted"), rows(tmp_path / "interrupted")
    if repartition:
        assert first[0] == second[0]
        return
    assert first == second and float(second[0]["lr"]) > 0
    expected = last_weights(tmp_path / "uninterrupted", 2)
    assert all(torch.equal(value, expected[name]) for name, value in last_weights(tmp_path / "interrupted", 2).items())


def test_sigterm_during_validation_saves_and_ends_the_run(dataset, tmp_path, monkeypatch):
    run = config(dataset, tmp_path, epochs=1)
    taken = at_batch(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(UserError, match=f"terminated; saved as checkpoints/epoch-0001-image-{TRAIN:09d}: run the same"):
        run_training(run)
    assert taken[0] < BATCHES
    run_training(run)
    assert taken[1] == BATCHES and [row["epoch"] for row in rows(tmp_path)] == ["1"]


def test_the_temperature_is_that_of_all_logits_and_1_with_too_many_classes(
    dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(dataset, tmp_path, epochs=1)
    result = run_training(run)
    model, meta = load_model(locate(result.run) / result.best_checkpoint)
    assert meta.temperature == pytest.approx(result.best["temperature"]) != 1
    with Loader(dataset, "val", run.loader) as loader:
        preprocess = Preprocess(meta.mean, meta.std, torch.device("cpu"))
        kept = [(output, labels) for _, output, labels in predict(model, loader.epoch(1), preprocess)]
    outputs, labels = (torch.cat(each) for each in zip(*kept, strict=True))
    assert fit_temperature(outputs, labels) == pytest.approx(1, rel=0.02)  # the loaded model is calibrated
    calibrated_loss = torch.nn.functional.cross_entropy(outputs, labels)
    assert result.best["val_calibrated_loss"] == pytest.approx(float(calibrated_loss), rel=1e-3)
    assert result.best["val_calibrated_loss"] <= result.best["val_loss"] * 1.02
    monkeypatch.setattr(validation_module, "CALIBRATION_LOGITS", 4 * 499)
    result = run_training(dataclasses.replace(run, name="many"))
    assert result.best["temperature"] == 1
    assert result.best["val_calibrated_loss"] == result.best["val_loss"]


def test_the_calibrated_loss_chooses_the_checkpoint(dataset: PackedDataset, tmp_path: Path) -> None:
    run = config(dataset, tmp_path, epochs=3, monitor="val_calibrated_loss")
    result = run_training(run)
    losses = {int(row["epoch"]): float(row["val_calibrated_loss"]) for row in rows(tmp_path)}
    assert result.best["epoch"] == min(losses, key=lambda epoch: losses[epoch])
