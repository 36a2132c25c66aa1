"""`landmark train --lr-range-test`: the rising learning rate, the suggestion, and what it leaves behind."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from landmark.cli import main
from landmark.config import LoaderConfig, ModelConfig, OptimizerConfig, ProbeConfig, TrainConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.training.lr_range import RANGE, lr_range_test, lr_range_text
from tests.support.packed import write_packed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [60, 36], "val": [16]}, classes=4)


def config(dataset: PackedDataset, **changes) -> TrainConfig:
    base = TrainConfig(
        dataset=dataset.uri,
        model=ModelConfig(backbone="reference_mlp"),
        optimizer=OptimizerConfig(name="sgd"),
        loader=LoaderConfig(image_size=16, batch_size=16, decode_threads=1),
    )
    return dataclasses.replace(base, **changes)


def test_the_learning_rate_rises_until_the_loss_diverges_and_the_suggestion_trains(dataset: PackedDataset) -> None:
    found = lr_range_test(config(dataset))
    rates = [lr for lr, _ in found["rows"]]
    assert rates[0] == pytest.approx(RANGE[0]) and rates == sorted(rates) and rates[-1] <= RANGE[1]
    ratios = [after / before for before, after in itertools.pairwise(rates)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    lowest = min(found["rows"], key=lambda row: row[1])
    assert RANGE[0] < found["lr"] <= lowest[0] < rates[-1]
    text = lr_range_text(config(dataset), found)
    assert f"--lr {found['lr']:g}" in text and "this run has --lr 0.05" in text


def test_the_suggestion_is_for_the_base_batch_size(dataset: PackedDataset) -> None:
    plain = lr_range_test(config(dataset))
    scaled = config(dataset, optimizer=OptimizerConfig(name="sgd", base_batch_size=64))
    # Training with the suggestion has the same peak: 16 of 64 images are a quarter of the learning rate.
    assert lr_range_test(scaled)["lr"] == pytest.approx(4 * plain["lr"], rel=0.02)


def test_it_starts_at_the_probe(dataset: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark.training.lr_range.STEPS", 12)
    monkeypatch.setattr("landmark.training.lr_range.RANGE", (1e-7, 1e-3))
    model = ModelConfig(backbone="timm/tf_efficientnet_lite0", weights="lite0", freeze_norm_stats=True)
    loader = LoaderConfig(image_size=32, batch_size=16, decode_threads=1)
    settings = config(dataset, model=model, loader=loader, output=str(tmp_path / "runs"))
    with_probe = dataclasses.replace(settings, probe=ProbeConfig(head="logistic"))
    assert lr_range_test(with_probe)["rows"][0][1] < 0.7 * lr_range_test(settings)["rows"][0][1]


def test_a_loss_that_is_not_finite_is_one_line(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark.training.lr_range.RANGE", (1e20, 1e30))
    with pytest.raises(UserError, match="the loss diverges within . steps at learning rates up to 1e\\+2"):
        lr_range_test(config(dataset))


def test_the_command_prints_json_and_stores_nothing(dataset: PackedDataset, tmp_path: Path, capsys) -> None:
    command = ["train", dataset.uri, "--recipe", "modern", "--model", "reference_mlp", "--img-size", "16"]
    command += ["-o", str(tmp_path)]
    assert main([*command, "--lr-range-test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lr"] > 0 and not list(tmp_path.iterdir())
    assert main([*command, "--lr-range-test", "--num-workers", "2"]) == 2
    assert "lr_range_test measures one worker in this process" in capsys.readouterr().err
    assert main([*command, "--lr-range-test", "--headroom"]) == 2
    assert "headroom and lr_range_test are separate measurements" in capsys.readouterr().err
