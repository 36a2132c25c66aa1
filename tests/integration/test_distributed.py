"""Tests training on two Ray Train workers: equal weights, the gradient of the joint batch, one-line errors."""

import csv
import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import ray.train
import torch

from landmark.checkpoints.format import Snapshot
from landmark.checkpoints.store import CheckpointStore
from landmark.config import (
    AugmentConfig,
    HeadConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TrainConfig,
    UserError,
    WorkersConfig,
    from_mapping,
    to_mapping,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Loader
from landmark.models import build_model, classification_loss
from landmark.storage import locate
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.compute.device_prefetch import place
from landmark.training.distributed.ray_train import Trainer, TrainWorkerSession, fit_workers
from landmark.training.loop.fit import fit
from landmark.training.run import absolute_paths, run_training
from tests.support.packed import write_packed


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("packed")
    return write_packed(folder, {"train": [61, 40], "val": [23], "test": [9]}, classes=4)


def config(packed: PackedDataset, folder: Path, **changes) -> TrainConfig:
    base = TrainConfig(
        dataset=packed.location.uri,
        output=str(folder),
        epochs=2,
        model=ModelConfig(backbone="reference_mlp"),
        optimizer=OptimizerConfig(name="sgd", lr=0.01, momentum=0.0),
        schedule=ScheduleConfig(name="constant"),
        loader=LoaderConfig(image_size=16, batch_size=16, decode_threads=1, stream="thread"),
        workers=WorkersConfig(count=2, cpus=1, max_failures=1),
        tensorboard=False,
        resume=True,
    )
    return dataclasses.replace(base, **changes)


class RecordingSession(TrainWorkerSession):
    """A Ray Train session that saves the weights and metrics of each rank."""

    def __init__(self, run: TrainConfig, folder: str) -> None:
        super().__init__(locate(folder), run, tell=print, heartbeat_sender=None, relay=None)
        self.folder = folder

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        self.model = super().prepare(model)
        return self.model

    def report(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        torch.save(
            {"weights": self.model.module.state_dict(), "metrics": dict(metrics)},
            f"{self.folder}/rank{self.rank}-epoch{metrics['epoch']}.pt",
        )
        super().report(metrics, snapshot)


def _recording_work(values: dict) -> None:
    torch.set_num_threads(1)
    _save_gradient(from_mapping(TrainConfig, values["gradient"], "the test"), values["folder"])
    run = from_mapping(TrainConfig, values["config"], "the test")
    fit(run, PackedDataset.open(run.dataset), RecordingSession(run, values["folder"]))


def _save_gradient(run: TrainConfig, folder: str) -> None:
    session = TrainWorkerSession(locate(folder), run, tell=print, heartbeat_sender=None, relay=None)
    torch.manual_seed(0)
    model = session.prepare(build_model(run.model, classes=4, image_size=16))
    placed = {"rank": session.rank, "world_size": session.world_size, "augment": AugmentConfig()}
    with Loader(PackedDataset.open(run.dataset), "train", run.loader, **placed) as loader:
        batch = next(iter(loader.epoch(1)))
        placed = place(batch, session.device)
        output = model(Preprocess((0.5,) * 3, (0.5,) * 3, session.device)(placed.images, placed.flip))
        (classification_loss(output, torch.from_numpy(batch.labels)) * batch.weight).backward()
    gradient = {name: p.grad for name, p in model.module.named_parameters()}
    torch.save({"gradient": gradient, "batch": batch}, f"{folder}/gradient{session.rank}.pt")


def gradient_config(dataset: PackedDataset, folder: Path) -> TrainConfig:
    return config(dataset, folder, loader=LoaderConfig(image_size=16, batch_size=15, stream="thread"))


@pytest.fixture(scope="module")
def saved_by_two_workers(dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files of two workers: the gradient of one batch, then weights and metrics of two epochs."""
    folder = tmp_path_factory.mktemp("written")
    run = config(dataset, folder, model=ModelConfig(backbone="resnet18"))
    trainer = Trainer(
        _recording_work,
        train_loop_config={
            "config": to_mapping(run),
            "gradient": to_mapping(gradient_config(dataset, folder)),
            "folder": str(folder),
        },
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="witness", storage_path=str(folder)),
    )
    trainer.fit()
    return folder


def test_weights_are_equal_on_both_ranks_and_metrics_are_reduced(saved_by_two_workers):
    for epoch in (1, 2):
        first, second = (torch.load(saved_by_two_workers / f"rank{rank}-epoch{epoch}.pt") for rank in (0, 1))
        assert set(first["weights"]) == set(second["weights"])
        for name, tensor in first["weights"].items():
            assert torch.equal(tensor, second["weights"][name]), name
        for key in ("train_loss", "val_loss", "val_top1", "val_macro_recall"):
            assert first["metrics"][key] == second["metrics"][key]


def test_the_gradient_equals_that_of_one_process_with_the_joint_batch(dataset, saved_by_two_workers):
    saved = [torch.load(saved_by_two_workers / f"gradient{rank}.pt", weights_only=False) for rank in (0, 1)]
    batches = [rank_saved["batch"] for rank_saved in saved]
    assert not set(batches[0].samples.tolist()) & set(batches[1].samples.tolist())
    torch.manual_seed(0)
    model = build_model(gradient_config(dataset, saved_by_two_workers).model, classes=4, image_size=16)
    preprocess = Preprocess((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    placed = [place(batch, preprocess.device) for batch in batches]
    inputs = torch.cat([preprocess(batch.images, batch.flip) for batch in placed])
    labels = torch.cat([torch.from_numpy(batch.labels) for batch in batches])
    classification_loss(model(inputs), labels).backward()
    for name, parameter in model.named_parameters():
        for rank_saved in saved:
            assert torch.allclose(rank_saved["gradient"][name], parameter.grad, rtol=1e-4, atol=1e-6), name


def test_two_workers_that_use_all_cpus_learn_and_resume(dataset, tmp_path, monkeypatch):
    # The dataset path is relative to a folder that the workers do not share. No CPU is left over.
    monkeypatch.chdir(dataset.location.local_path().parent)
    loader = LoaderConfig(image_size=16, batch_size=16, decode_threads=1, stream="ray", reader_cpus=0.25)
    changes = {
        "loader": loader,
        "workers": WorkersConfig(count=2, cpus=1.5),
        "optimizer": OptimizerConfig(name="adam", lr=0.003),
    }
    run = dataclasses.replace(
        config(dataset, tmp_path, epochs=4, **changes), dataset=dataset.location.local_path().name
    )
    result = run_training(run)
    assert result.best["val_top1"] > 0.5
    assert result.epochs_run == 4
    rows = list(csv.DictReader((tmp_path / "train" / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert (locate(result.run) / result.best_checkpoint / "meta.json").exists()
    longer = dataclasses.replace(run, epochs=5, resume=True)
    assert run_training(longer).epochs_run == 5
    # Workers that start after the last epoch have nothing to read: Ray Train may resize an elastic run then.
    fit_workers(absolute_paths(longer), locate(result.run))
    assert CheckpointStore(locate(result.run), run.monitor, run.monitor_mode()).path("last").endswith("epoch-0005")


def test_two_workers_compute_each_feature_of_a_probe_once_and_fine_tune_from_it(dataset, tmp_path):
    start = ModelConfig(backbone="reference_mlp")
    torch.save(build_model(start, classes=4, image_size=16).state_dict(), tmp_path / "start.pt")
    frozen = ModelConfig(backbone="reference_mlp", weights=str(tmp_path / "start.pt"), freeze_backbone=True)
    probe = ProbeConfig(head="logistic", l2=0.01, features=str(tmp_path / "features"))
    two = run_training(config(dataset, tmp_path, epochs=1, model=frozen, probe=probe))
    (key,) = (tmp_path / "features").iterdir()
    samples = {split: [pq.read_table(part)["sample"] for part in (key / split).iterdir()] for split in ("train", "val")}
    for split, rows in (("train", 101), ("val", 23)):
        assert sorted(number.as_py() for part in samples[split] for number in part) == list(range(rows))
    one = run_training(
        config(dataset, tmp_path, epochs=1, model=frozen, probe=probe, name="one", workers=WorkersConfig())
    )
    assert two.best["val_loss"] == pytest.approx(one.best["val_loss"], rel=1e-3)
    tuned = dataclasses.replace(frozen, freeze_backbone=False)
    slow = OptimizerConfig(name="sgd", lr=1e-9, momentum=0.0)
    run = run_training(config(dataset, tmp_path, epochs=1, model=tuned, probe=probe, name="tuned", optimizer=slow))
    assert run.best["val_loss"] == pytest.approx(two.best["val_loss"], rel=1e-2)


def test_an_error_in_a_worker_is_one_line(dataset, tmp_path):
    bad = config(dataset, tmp_path, optimizer=OptimizerConfig(name="sgd", lr=1e12), epochs=3)
    bad = dataclasses.replace(bad, workers=WorkersConfig(count=2, cpus=1, max_failures=0))
    with pytest.raises(UserError, match="training failed: .*the loss became") as error:
        run_training(bad)
    assert "\n" not in str(error.value)


def test_more_workers_than_cpus_are_refused_before_anything_starts(dataset, tmp_path):
    many = config(dataset, tmp_path, workers=WorkersConfig(count=9, cpus=1))
    with pytest.raises(UserError, match="not enough resources for the run"):
        run_training(many)


def test_a_sampled_head_trains_on_two_workers_and_resumes_on_one(dataset, tmp_path):
    # A model without batch norm, because each worker normalizes over its own images.
    model = ModelConfig(backbone="reference_mlp", head=HeadConfig(name="arcface", scale=16.0, sample=0.5))
    run = config(dataset, tmp_path / "two", model=model, optimizer=OptimizerConfig(name="adamw", lr=0.002), epochs=6)
    result = run_training(run)
    assert result.best["val_top1"] > 0.9
    resumed = dataclasses.replace(run, epochs=8, resume=True, workers=WorkersConfig(count=1))
    assert run_training(resumed).epochs_run == 8
    rows = list(csv.DictReader((tmp_path / "two" / "train" / "history.csv").open()))
    losses = [float(row["train_loss"]) for row in rows]
    assert len(losses) == 8 and max(losses[6:]) < min(losses[:3])
