"""Tests distillation: teachers' features are computed once, and the loss is that of Hinton et al."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landmark.checkpoints.format import load_model, resolve_checkpoint
from landmark.config import (
    AugmentConfig,
    DistillConfig,
    LoaderConfig,
    ModelConfig,
    ProbeConfig,
    Recipe,
    TrainConfig,
    TuneConfig,
    UserError,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Loader
from landmark.models import Embedder, build_model, distillation_loss
from landmark.search.study import plan_study
from landmark.storage import locate
from landmark.training.compute.device_prefetch import place
from landmark.training.loop.state import RunState
from landmark.training.measuring import MeasuringSession
from landmark.training.probe.teacher import load_teacher
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.support.ranks import Rank, World
from tests.support.runs import history, small_run

BACKBONE = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedDataset, Path]:
    """Return a dataset and a folder with a probe of a convolutional network, and a run `second`."""
    folder = tmp_path_factory.mktemp("teacher")
    dataset = write_packed(folder / "dataset", {"train": [60, 30], "val": [21], "test": [20]})
    torch.manual_seed(0)
    weights = folder / "start.pt"
    torch.save(build_model(ModelConfig(backbone=BACKBONE), classes=3, image_size=32).state_dict(), weights)
    run_training(probe(dataset, folder, str(weights)))
    run_training(small_run(dataset, folder, name="second"))
    return dataset, folder


def probe(dataset: PackedDataset, folder: Path, weights: str) -> TrainConfig:
    return TrainConfig(
        dataset=dataset.location.uri,
        output=str(folder),
        name="teacher",
        epochs=1,
        model=ModelConfig(backbone=BACKBONE, weights=weights, freeze_backbone=True),
        probe=ProbeConfig(head="logistic"),
        loader=LoaderConfig(image_size=32, batch_size=16, decode_threads=1),
        tensorboard=False,
    )


def student(dataset: PackedDataset, folder: Path, *teachers: str, **changes) -> TrainConfig:
    distill = DistillConfig(teachers=tuple(str(folder / name) for name in teachers), weight=0.7)
    return small_run(dataset, folder, distill=distill, name="student", **changes)


def test_the_features_of_the_teachers_own_probe_are_used(trained, forwards, capsys) -> None:
    dataset, folder = trained
    config = student(dataset, folder, "teacher", "second")
    run_training(config)
    assert sum(forwards) == 90  # only those of the second teacher
    assert "teacher: 90 images (0 computed here)" in capsys.readouterr().out
    rows = history(folder, "student")
    assert float(rows[-1]["val_top1"]) > 0.9
    run_training(dataclasses.replace(config, name="again"))
    assert sum(forwards) == 90


def test_probabilities_are_the_mean_of_the_teachers_outputs_on_center_crops(trained) -> None:
    dataset, folder = trained
    config = student(dataset, folder, "teacher", "second")
    run = RunState(config, dataset, MeasuringSession())  # type: ignore[arg-type]
    teacher = load_teacher(run, config.loader, None)
    images: dict[str, dict[int, torch.Tensor]] = {}
    for name in ("teacher", "second"):
        model, meta = load_model(resolve_checkpoint(str(folder / name)))
        embedder, images[name] = Embedder(model), {}
        loader = dataclasses.replace(config.loader, image_size=meta.image_size, crop_pct=meta.crop_pct)
        with Loader(dataset, "train", loader) as source:
            for batch in source.epoch(1):
                pixels = torch.from_numpy(np.ascontiguousarray(batch.images)).permute(0, 3, 1, 2) / 255
                inputs = (pixels - torch.tensor(meta.mean)[:, None, None]) / torch.tensor(meta.std)[:, None, None]
                with torch.no_grad():
                    _, logits = embedder.with_logits(inputs)
                images[name] |= dict(zip(batch.samples.tolist(), (logits / 2.0).softmax(1), strict=True))
    with Loader(dataset, "train", config.loader, augment=AugmentConfig()) as source:
        batch = next(iter(source.epoch(1)))
    found = teacher.probabilities(place(batch, torch.device("cpu")))
    expected = [(images["teacher"][sample] + images["second"][sample]) / 2 for sample in batch.samples.tolist()]
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-3, rtol=0)


def test_several_ranks_compute_each_image_once(trained, forwards, tmp_path) -> None:
    dataset, folder = trained
    config = student(dataset, folder, "second")
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, features=str(tmp_path)))

    def features(rank: Rank) -> np.ndarray:
        rank.heartbeat = lambda phase: None  # type: ignore[attr-defined]
        run = RunState(config, dataset, rank)  # type: ignore[arg-type]
        (member,) = load_teacher(run, config.loader, None).members
        return member.features[member.row_of]

    found = World(3).run(features)
    assert sum(forwards) == 90
    assert all(np.array_equal(found[0], other) for other in found)


def test_with_weight_1_the_labels_have_no_influence_on_the_gradient(trained, tmp_path) -> None:
    dataset, folder = trained
    config = student(dataset, folder, "teacher", augment=AugmentConfig(mixup=0.4))
    config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, weight=1.0), output=str(tmp_path))
    run = RunState(config, dataset, MeasuringSession())  # type: ignore[arg-type]
    run.step.objective.teacher = load_teacher(run, config.loader, None)
    with Loader(dataset, "train", config.loader, augment=config.augment) as source:
        batch = next(iter(source.epoch(1)))
    wrong = dataclasses.replace(batch, labels=(batch.labels + 1) % 4)
    gradients = []
    for each in (batch, wrong):
        run.step.run(each, run.schedule, 0, 16)
        gradients.append([parameter.grad.clone() for parameter in run.model.parameters()])
        run = _fresh(config, dataset, run)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def _fresh(config: TrainConfig, dataset: PackedDataset, run: RunState) -> RunState:
    fresh = RunState(config, dataset, MeasuringSession())  # type: ignore[arg-type]
    fresh.step.objective.teacher = run.step.objective.teacher
    return fresh


def test_an_image_without_features_has_its_labels_probability(trained) -> None:
    dataset, folder = trained
    config = student(dataset, folder, "teacher")
    run = RunState(config, dataset, MeasuringSession())  # type: ignore[arg-type]
    teacher = load_teacher(run, config.loader, None)
    with Loader(dataset, "train", config.loader) as source:
        batch = next(iter(source.epoch(1)))
    teacher.members[0].row_of[batch.samples[3]] = -1
    found = teacher.probabilities(place(batch, torch.device("cpu")))
    assert found[3].tolist() == nn.functional.one_hot(torch.tensor(batch.labels[3]), 4).tolist()
    assert found[4].max() < 1


def test_the_loss_is_the_scaled_divergence() -> None:
    torch.manual_seed(0)
    logits, taught = torch.randn(4, 5), torch.randn(4, 5).mul(3).softmax(1)
    logs = (logits / 3).log_softmax(1)
    expected = 9 * (taught * (taught.log() - logs)).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, taught, 3.0), expected)
    assert float(distillation_loss(taught.log() * 3, taught, 3.0)) == pytest.approx(0, abs=1e-6)


def test_teachers_of_other_classes_are_one_line(trained, tmp_path) -> None:
    _, folder = trained
    other = write_packed(tmp_path / "other", {"train": [40], "val": [10]}, classes=3)
    config = student(other, tmp_path, str(folder / "teacher"))
    with pytest.raises(UserError, match="its model has 4 classes, but .* has 3"):
        run_training(config)


def test_a_missing_teacher_is_found_before_anything_is_computed(trained, forwards, tmp_path) -> None:
    dataset, folder = trained
    config = dataclasses.replace(
        probe(dataset, tmp_path, str(folder / "start.pt")),
        model=ModelConfig(backbone=BACKBONE, weights=str(folder / "start.pt"), freeze_norm_stats=True),
        distill=DistillConfig(teachers=(str(folder / "nowhere"),)),
    )
    with pytest.raises(UserError, match="nowhere: does not exist; pass the folder of a run"):
        run_training(config)
    assert not forwards and not (tmp_path / "features").exists()


def test_a_study_with_a_missing_teacher_does_not_start(trained, tmp_path) -> None:
    dataset, folder = trained
    recipe = Recipe(distill=DistillConfig(teachers=(str(folder / "nowhere"),)))
    config = TuneConfig(dataset=dataset.location.uri, space="small", output=str(tmp_path), recipe=recipe)
    with pytest.raises(UserError, match="nowhere: does not exist; pass the folder of a run"):
        plan_study(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0.3}, "distill.weight is set, but distill.teachers is empty"),
        ({"teachers": ("x",), "weight": 0.0}, "distill.weight is 0.0; expected above 0, up to 1"),
        ({"teachers": ("x",), "temperature": -1.0}, "distill.temperature is -1.0; expected above 0"),
    ],
)
def test_wrong_options_are_one_line(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig(**changes)


def test_a_run_that_is_only_a_probe_refuses_teachers(trained, tmp_path) -> None:
    dataset, folder = trained
    with pytest.raises(ValueError, match="distill.teachers is set, but with model.freeze_backbone"):
        dataclasses.replace(
            probe(dataset, tmp_path, "weights.pt"), distill=DistillConfig(teachers=(locate(str(folder)).uri,))
        )
