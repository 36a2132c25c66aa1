"""Tests the probe as a run and as the start of fine-tuning: stored features, ordinary runs, killed and repeated commands."""

import csv
import dataclasses
import functools
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest
import torch

import landmark.training.probe.features as features_module
import landmark.training.probe.start as start_module
from landmark.checkpoints.format import load_model, read_weights
from landmark.config import (
    AugmentConfig,
    HeadConfig,
    LoaderConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    Stopped,
    SubsetConfig,
    TrainConfig,
    UserError,
)
from landmark.data.dataset import PackedDataset
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.models import build_model
from landmark.storage import Location, locate
from landmark.storage.tables import read_table
from landmark.training.loop.state import RunState
from landmark.training.probe.features import FeatureStore
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.support.ranks import Rank, World

TRAIN, VAL = 97, 21
BACKBONE = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [60, 37], "val": [VAL], "test": [23]})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a backbone whose features tell the colors of the pictures apart."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(backbone=BACKBONE), classes=3, image_size=32)
    place = tmp_path_factory.mktemp("weights") / "start.pt"
    torch.save(model.state_dict(), place)
    return str(place)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "PART_ROWS", 20)


def probe(packed: PackedDataset, weights: str, output: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        dataset=packed.location.uri,
        output=str(output),
        epochs=1,
        model=ModelConfig(backbone=BACKBONE, weights=weights, freeze_backbone=True),
        probe=ProbeConfig(head="logistic"),
        loader=LoaderConfig(image_size=32, batch_size=16, decode_threads=1),
        tensorboard=False,
    )
    return dataclasses.replace(base, **changes)


def finetune(packed: PackedDataset, weights: str, output: Path, **changes) -> TrainConfig:
    values = {
        "model": ModelConfig(backbone=BACKBONE, weights=weights, freeze_norm_stats=True),
        "optimizer": OptimizerConfig(name="adamw", lr=1e-4),
        "schedule": ScheduleConfig(name="constant"),
        "name": "tuned",
    }
    return probe(packed, weights, output, **{**values, **changes})


def history(output: Path, name: str = "train") -> list[dict[str, str]]:
    return list(csv.DictReader((output / name / "history.csv").open()))


def train_parts(output: Path) -> list[Location]:
    """Return the stored parts of the training split's center crops."""
    (key,) = (output / "features").iterdir()
    return [locate(str(part)) for part in (key / "train").iterdir()]


def test_a_probe_is_an_ordinary_run(dataset: PackedDataset, weights: str, tmp_path: Path) -> None:
    result = run_training(probe(dataset, weights, tmp_path))
    (row,) = history(tmp_path)
    assert result.epochs_run == 1 and result.best["val_top1"] == float(row["val_top1"])
    checkpoint = locate(result.run) / result.best_checkpoint
    found = evaluate_checkpoint(checkpoint, dataset, "val", Settings(quiet=True))
    assert found.accumulator.top_k(1) == pytest.approx(result.best["val_top1"])
    assert result.best["val_top1"] > 0.9
    again = run_training(probe(dataset, weights, tmp_path, resume=True))
    assert again.finished_before


def test_only_the_classifier_differs_from_the_start_weights(
    dataset: PackedDataset, weights: str, tmp_path: Path
) -> None:
    result = run_training(probe(dataset, weights, tmp_path))
    trained = read_weights(tmp_path / "train" / result.best_checkpoint)
    start = torch.load(weights, weights_only=True)
    assert trained.keys() == start.keys()
    same = {
        name for name in trained if trained[name].shape == start[name].shape and torch.equal(trained[name], start[name])
    }
    assert trained.keys() - same == {"fc.weight", "fc.bias"}


def test_features_are_computed_once_for_all_heads_and_labels(
    dataset: PackedDataset, weights: str, tmp_path: Path, forwards: list[int]
) -> None:
    run_training(probe(dataset, weights, tmp_path))
    assert sum(forwards) == TRAIN + VAL
    forwards.clear()
    run_training(probe(dataset, weights, tmp_path, name="ridge", probe=ProbeConfig(head="ridge")))
    run_training(probe(dataset, weights, tmp_path, name="weighted", loss=LossConfig(class_weights="balanced")))
    run_training(finetune(dataset, weights, tmp_path))
    assert not forwards
    other = LoaderConfig(image_size=48, batch_size=16, decode_threads=1)
    run_training(probe(dataset, weights, tmp_path, name="larger", loader=other))
    assert sum(forwards) == TRAIN + VAL


def test_a_subset_uses_the_features_of_the_dataset_and_adds_its_own(
    dataset: PackedDataset, weights: str, tmp_path: Path, forwards: list[int]
) -> None:
    run_training(probe(dataset, weights, tmp_path, subset=SubsetConfig(shots=3), name="few"))
    assert sum(forwards) == 4 * 3 + VAL
    forwards.clear()
    run_training(probe(dataset, weights, tmp_path))
    assert sum(forwards) == TRAIN - 4 * 3
    forwards.clear()
    few = run_training(probe(dataset, weights, tmp_path, subset=SubsetConfig(shots=5, classes=3), name="again"))
    fresh = run_training(probe(dataset, weights, tmp_path / "new", subset=SubsetConfig(shots=5, classes=3)))
    assert sum(forwards) == 3 * 5 + (VAL - VAL // 4)  # only those of the new folder
    assert few.best["val_top1"] == fresh.best["val_top1"]
    assert few.best["val_loss"] == pytest.approx(fresh.best["val_loss"], abs=0.02)


def test_other_weights_have_other_features(
    dataset: PackedDataset, weights: str, tmp_path: Path, forwards: list[int]
) -> None:
    run_training(probe(dataset, weights, tmp_path))
    forwards.clear()
    state = torch.load(weights, weights_only=True)
    state["conv1.0.weight"] *= 2
    torch.save(state, tmp_path / "other.pt")
    run_training(probe(dataset, str(tmp_path / "other.pt"), tmp_path, name="other"))
    assert sum(forwards) == TRAIN + VAL


def test_a_killed_probe_computes_only_the_missing_features(
    dataset: PackedDataset, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: list[int]
) -> None:
    write, stored = features_module.write_table, []

    def killed(place: Location, table: pa.Table) -> None:
        if len(stored) == 3:
            raise KeyboardInterrupt
        write(place, table)
        stored.append(len(table))

    monkeypatch.setattr(features_module, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        run_training(probe(dataset, weights, tmp_path))
    forwards.clear()
    monkeypatch.setattr(features_module, "write_table", write)
    run_training(probe(dataset, weights, tmp_path))
    assert sum(forwards) == TRAIN + VAL - sum(stored)
    assert len(history(tmp_path)) == 1


def test_a_corrupt_file_of_features_is_named(dataset: PackedDataset, weights: str, tmp_path: Path) -> None:
    run_training(probe(dataset, weights, tmp_path))
    file = Path(train_parts(tmp_path)[0].uri)
    content = file.read_bytes()
    file.write_bytes(content[:200])
    with pytest.raises(
        UserError, match=rf"{file.name}: .*; delete this file of features, and run the same command"
    ) as error:
        run_training(probe(dataset, weights, tmp_path, name="again"))
    assert "\n" not in str(error.value)
    file.unlink()
    run_training(probe(dataset, weights, tmp_path, name="again"))


def test_sigterm_ends_a_probe_after_the_current_part(
    dataset: PackedDataset, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: list[int]
) -> None:
    write = features_module.write_table

    def terminated(place: Location, table: pa.Table) -> None:
        write(place, table)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(features_module, "write_table", terminated)
    with pytest.raises(Stopped, match="run the same command again to continue"):
        run_training(probe(dataset, weights, tmp_path))
    assert 0 < sum(forwards) < TRAIN / 2
    monkeypatch.setattr(features_module, "write_table", write)
    run_training(probe(dataset, weights, tmp_path))
    assert sum(forwards) == TRAIN + VAL


def test_fine_tuning_starts_at_the_probe(dataset: PackedDataset, weights: str, tmp_path: Path) -> None:
    single = run_training(probe(dataset, weights, tmp_path))
    tuned = run_training(finetune(dataset, weights, tmp_path, optimizer=OptimizerConfig(name="adamw", lr=1e-12)))
    ours, theirs = (
        read_weights(tmp_path / name / run.best_checkpoint) for name, run in (("train", single), ("tuned", tuned))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert tuned.best["val_loss"] == pytest.approx(single.best["val_loss"], rel=0.01)


def test_a_resumed_run_does_not_start_at_the_probe_again(
    dataset: PackedDataset, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_training(finetune(dataset, weights, tmp_path / "whole", epochs=2))
    run_training(finetune(dataset, weights, tmp_path / "parts"))
    monkeypatch.setattr(FeatureStore, "read", None)
    parts = run_training(finetune(dataset, weights, tmp_path / "parts", epochs=2, resume=True))
    ours, theirs = (
        read_weights(tmp_path / name / "tuned" / run.last_checkpoint)
        for name, run in (("whole", whole), ("parts", parts))
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_frozen_statistics_stay_those_of_the_start_weights(
    dataset: PackedDataset, weights: str, tmp_path: Path
) -> None:
    start = torch.load(weights, weights_only=True)
    for frozen in (True, False):
        model = ModelConfig(backbone=BACKBONE, weights=weights, freeze_norm_stats=frozen)
        run = run_training(finetune(dataset, weights, tmp_path, model=model, name=f"frozen-{frozen}"))
        trained = read_weights(tmp_path / run.name / run.last_checkpoint)
        same = [torch.equal(trained[name], start[name]) for name in trained if name.endswith("running_mean")]
        assert same and all(same) == frozen


def test_more_views_have_each_image_once_per_view_and_are_the_same_in_every_run(
    dataset: PackedDataset, weights: str, tmp_path: Path, forwards: list[int]
) -> None:
    views = ProbeConfig(head="ridge", views=3)
    run_training(probe(dataset, weights, tmp_path, probe=views))
    assert sum(forwards) == 3 * TRAIN + VAL
    forwards.clear()
    run_training(probe(dataset, weights, tmp_path, probe=ProbeConfig(head="logistic", views=2), name="again"))
    assert not forwards
    other = AugmentConfig(crop_area=(0.9, 1.0))
    run_training(probe(dataset, weights, tmp_path, probe=views, augment=other, name="other"))
    assert sum(forwards) == 2 * TRAIN  # the center crops do not depend on the augmentation
    (folder,) = (tmp_path / "features").iterdir()
    assert len([part for part in folder.iterdir() if part.name.startswith("train")]) == 1 + 2 * 2


def test_several_ranks_compute_each_image_once_and_fit_the_same_classifier(
    dataset: PackedDataset, weights: str, tmp_path: Path, forwards: list[int]
) -> None:
    single = run_training(probe(dataset, weights, tmp_path / "single"))
    forwards.clear()
    config = probe(dataset, weights, tmp_path, probe=ProbeConfig(head="logistic", features=str(tmp_path / "shared")))

    def classifier(rank: Rank) -> torch.Tensor:
        from landmark.training.loop.loaders import training_loader
        from landmark.training.probe.start import fit_probe

        rank.heartbeat = lambda phase: None  # type: ignore[attr-defined]
        run = RunState(config, dataset, rank)  # type: ignore[arg-type]
        fit_probe(run, training_loader(config, dataset, 1), None)
        return run.model.fc.weight.detach()

    found = World(3).run(classifier)
    assert sum(forwards) == TRAIN + VAL
    assert all(torch.equal(found[0], other) for other in found)
    expected = read_weights(tmp_path / "single" / "train" / single.best_checkpoint)["fc.weight"]
    torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=1e-2)


def test_a_cosine_head_has_the_mean_directions_of_the_classes(
    dataset: PackedDataset, weights: str, tmp_path: Path
) -> None:
    model = ModelConfig(backbone=BACKBONE, weights=weights, freeze_backbone=True, head=HeadConfig(name="arcface"))
    run = run_training(probe(dataset, weights, tmp_path, model=model, probe=ProbeConfig(head="prototypes")))
    loaded, meta = load_model(locate(run.run) / run.best_checkpoint)
    assert run.best["val_top1"] > 0.5 and meta.temperature == pytest.approx(run.best["temperature"])
    assert loaded.fc.classifier.scale == pytest.approx(30 / meta.temperature)
    table = pa.concat_tables([read_table(part) for part in train_parts(tmp_path)]).sort_by("sample")
    values = torch.tensor(table["feature"].to_pylist())
    labels = torch.from_numpy(dataset.sample_labels("train"))
    directions = torch.nn.functional.normalize(values)
    means = torch.stack([directions[labels == number].mean(0) for number in range(4)])
    torch.testing.assert_close(loaded.fc.classifier.weight.detach(), torch.nn.functional.normalize(means))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(backbone=BACKBONE)}, "model.weights is unset"),
        ({"epochs": 3}, "set epochs to 1"),
        ({"probe": {"head": "prototypes", "l2": 0.1}}, "remove probe.l2"),
        ({"probe": {"head": "none", "views": 3}}, "remove probe.views"),
        ({"probe": {"head": "ridge"}, "loss": LossConfig(logit_adjustment=1.0)}, "set probe.head to logistic"),
        ({"model": ModelConfig(weights="x.pt", neck=8)}, "does not support model.neck"),
        ({"model": ModelConfig(weights="x.pt", head=HeadConfig(name="cosface"))}, "set probe.head to prototypes"),
    ],
)
def test_settings_that_do_not_fit_a_probe(
    dataset: PackedDataset, weights: str, tmp_path: Path, changes: dict, message: str
) -> None:
    given = {
        key: value if key != "probe" else functools.partial(ProbeConfig, **value) for key, value in changes.items()
    }

    def build() -> TrainConfig:
        values = {key: value() if callable(value) else value for key, value in given.items()}
        return probe(dataset, weights, tmp_path, **values)

    with pytest.raises(ValueError, match=message):
        build()


def test_a_model_without_a_linear_last_layer(dataset: PackedDataset, tmp_path: Path) -> None:
    torch.save(
        build_model(ModelConfig(backbone="squeezenet1_1"), classes=3, image_size=32).state_dict(), tmp_path / "s.pt"
    )
    model = ModelConfig(backbone="squeezenet1_1", weights=str(tmp_path / "s.pt"), freeze_backbone=True)
    with pytest.raises(UserError, match="ends in Conv2d instead of one linear layer; choose another model.backbone"):
        run_training(probe(dataset, str(tmp_path / "s.pt"), tmp_path, model=model))


def test_too_many_classes_for_a_probe(
    dataset: PackedDataset, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: list[int]
) -> None:
    monkeypatch.setattr(start_module, "MAX_LOGITS", 4 * (2 * TRAIN + VAL) - 1)
    with pytest.raises(UserError, match=r"215 images .* x 4 classes .*; lower probe.views"):
        run_training(probe(dataset, weights, tmp_path, probe=ProbeConfig(head="logistic", views=2)))
    assert not forwards
