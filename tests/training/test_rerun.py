"""Tests runs with an existing name: changed settings are named, finished runs reported, moved datasets found."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from landmark.commands.evaluate import evaluate
from landmark.commands.train import train
from landmark.config import (
    AugmentConfig,
    CheckpointConfig,
    ComputeConfig,
    EmaConfig,
    EvaluateConfig,
    LoaderConfig,
    LossConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
    TuneConfig,
    UserError,
    WorkersConfig,
    load_yaml,
    to_yaml,
)
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import open_dataset
from landmark.inference.sources import SplitImages
from landmark.search.resume import DATASETS, content_ids
from landmark.search.study import plan_study
from landmark.storage import locate
from landmark.training.resume import check_resume, differences
from landmark.training.run import run_training
from tests.data.test_cleaned_dataset import KEPT, write_cleaned
from tests.support.packed import write_packed
from tests.training.test_run import config

SPLITS = {"train": [24, 16], "val": [10], "test": [10]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), SPLITS)


@pytest.fixture(scope="module")
def trained(dataset: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return the config of a finished run of one epoch."""
    run = config(dataset, tmp_path_factory.mktemp("runs"), epochs=1)
    run_training(run)
    return run


def files(run: TrainConfig) -> dict[str, bytes]:
    folder = Path(run.output) / run.name
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def loader(**changes) -> dict[str, LoaderConfig]:
    return {"loader": LoaderConfig(**{"image_size": 16, "batch_size": 16, "decode_threads": 2} | changes)}


FIXED = [
    ({"model": ModelConfig(backbone="reference_cnn_max")}, "model.backbone: reference_mlp -> reference_cnn_max"),
    ({"schedule": ScheduleConfig(name="cosine")}, "schedule.name: constant -> cosine"),
    ({"loss": LossConfig(label_smoothing=0.1)}, "loss.label_smoothing: 0.0 -> 0.1"),
    ({"augment": AugmentConfig(mixup=0.2)}, "augment.mixup: 0.0 -> 0.2"),
    ({"ema": EmaConfig(decay=0.9)}, "ema.decay: unset -> 0.9"),
    ({"monitor": "val_loss"}, "monitor: val_top1 -> val_loss"),
    (loader(image_size=32), "loader.image_size: 16 -> 32"),
    (loader(batch_size=8), "loader.batch_size: 16 -> 8"),
]


def test_a_run_with_the_former_default_of_workers_cpus_can_resume(trained):
    older = dataclasses.replace(trained, workers=WorkersConfig(cpus=1.0))  # the former default
    assert not list(differences(older, trained, 1)) and not list(differences(trained, older, 1))


def test_sync_batchnorm_makes_a_different_run(trained):
    two_workers = dataclasses.replace(trained, workers=WorkersConfig(count=2))
    synced = dataclasses.replace(two_workers, compute=ComputeConfig(sync_batchnorm=True, gradient_checkpointing=True))
    assert {change.key: change.resumable for change in differences(two_workers, synced, 1)} == {
        "compute.sync_batchnorm": False,
        "compute.gradient_checkpointing": True,
    }


@pytest.mark.parametrize(("change", "message"), FIXED, ids=[message.split(":")[0] for _, message in FIXED])
@pytest.mark.parametrize("resume", [False, True])
def test_settings_that_change_the_run_are_named_and_refused(dataset, trained, change, message, resume):
    other = dataclasses.replace(trained, resume=resume, **change)
    before = files(trained)
    with pytest.raises(UserError) as error:
        run_training(other)
    assert f"cannot resume with different settings: {message}; choose another --name" in str(error.value)
    assert "\n" not in str(error.value) and files(trained) == before


RESUMABLE = [
    ({"epochs": 2}, "epochs: 1 -> 2"),
    ({"checkpoint": CheckpointConfig(steps=3)}, "checkpoint.steps: unset -> 3"),
    ({"compute": ComputeConfig(accumulate=2)}, "compute.accumulate: 1 -> 2"),
    (loader(readers=2, corrupt="skip"), "loader.readers: 1 -> 2, loader.corrupt: stop -> skip"),
]


@pytest.mark.parametrize(("change", "message"), RESUMABLE, ids=[message.split(":")[0] for _, message in RESUMABLE])
def test_settings_that_may_change_are_named_and_accepted_by_resume(dataset, trained, change, message):
    other = dataclasses.replace(trained, **change)
    with pytest.raises(UserError, match=f"{message}; add --resume to continue it, or choose"):
        run_training(other)
    folder = locate(trained.output) / trained.name
    found = check_resume(folder, dataclasses.replace(other, resume=True), dataset)
    assert ", ".join(map(str, found)) == message


def test_a_finished_run_trains_nothing_and_reports_it(dataset, trained, capsys):
    before = files(trained)
    first = json.loads(before[str(Path(trained.output) / trained.name / "run.json")])
    result = train(dataclasses.replace(trained, resume=True))
    out = capsys.readouterr().out
    assert result.finished_before and result.best == first["best"] and result.seconds == first["seconds"]
    assert out.splitlines()[0].startswith(
        "already finished, nothing to train; saved metrics: 1 epochs; best epoch 1: val"
    )
    assert files(trained) == before


def test_resume_extends_a_run_and_updates_its_config_when_it_trains(dataset, tmp_path, capsys):
    short = config(dataset, tmp_path, epochs=1, schedule=ScheduleConfig(name="one_cycle"))
    run_training(short)
    longer = dataclasses.replace(short, epochs=3, resume=True)
    saved = tmp_path / "train" / "config.yaml"
    broken = dataclasses.replace(longer, dataset=str(tmp_path / "none"))
    with pytest.raises(UserError, match="no manifest"):
        run_training(broken)
    assert load_yaml(TrainConfig, saved).epochs == 1
    assert run_training(longer).epochs_run == 3
    out = capsys.readouterr().out
    assert f"note: {tmp_path / 'train'} resumes with different settings: epochs: 1 -> 3\n" in out
    assert (
        "note: schedule.name one_cycle depends on the number of epochs: the rest is trained as in a run with 3 epochs"
        in out
    )
    assert load_yaml(TrainConfig, saved).epochs == 3
    shorter = dataclasses.replace(short, epochs=2, resume=True)
    with pytest.raises(UserError, match="cannot resume with different settings: epochs: 3 -> 2; choose another --name"):
        run_training(shorter)


def test_a_run_name_is_not_reused_without_resume(dataset, trained):
    before = files(trained)
    message = (
        "a run with this name exists, with 1 epochs finished; add --resume to continue it, or choose another --name"
    )
    with pytest.raises(UserError, match=message):
        run_training(trained)
    assert files(trained) == before


def test_resume_starts_a_new_run_if_no_checkpoint_exists(dataset, tmp_path):
    assert run_training(config(dataset, tmp_path, epochs=1, name="new", resume=True)).epochs_run == 1
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "config.yaml").write_text(to_yaml(config(dataset, tmp_path, epochs=7, seed=9)))
    assert run_training(config(dataset, tmp_path, epochs=1)).epochs_run == 1


def test_a_run_without_its_config_is_identified_by_its_checkpoint(dataset, tmp_path):
    run_training(config(dataset, tmp_path, epochs=1))
    (tmp_path / "train" / "config.yaml").unlink()
    with pytest.raises(UserError, match="cannot resume with different settings: ema.decay: unset -> 0.5; "):
        run_training(config(dataset, tmp_path, epochs=1, ema=EmaConfig(decay=0.5)))
    assert run_training(config(dataset, tmp_path, epochs=1, resume=True)).finished_before


def test_every_setting_is_compared(dataset, trained):
    """New settings are refused by default, not ignored."""
    keys = {change.key for change in differences(trained, dataclasses.replace(trained, output="x", name="y"), 1)}
    assert keys == set()
    other = dataclasses.replace(trained, seed=3, tensorboard=True, subset_seed=2, epochs=5)
    found = {change.key: change.resumable for change in differences(trained, other, 1)}
    assert found == {"seed": False, "tensorboard": True, "subset_seed": False, "epochs": True}


def test_a_moved_dataset_is_the_same_and_a_repacked_one_is_not(tmp_path):
    first = write_packed(tmp_path / "a", SPLITS)
    run = config(first, tmp_path, epochs=1, resume=True)
    run_training(run)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = dataclasses.replace(run, dataset=str(tmp_path / "b"))
    with pytest.raises(
        UserError, match="the model was trained on was not found; if it has moved, give its location with --dataset"
    ):
        evaluate(EvaluateConfig(run=str(tmp_path / "train")))
    assert evaluate(EvaluateConfig(run=str(tmp_path / "train"), dataset=moved.dataset))["rows"] == 10
    assert run_training(moved).dataset == moved.dataset
    assert run_training(dataclasses.replace(moved, epochs=2, resume=True)).epochs_run == 2
    assert load_yaml(TrainConfig, tmp_path / "train" / "config.yaml").dataset == str(tmp_path / "b")
    write_packed(tmp_path / "other", SPLITS, row_group_rows=4)
    with pytest.raises(UserError, match=r"different settings: dataset: .*/b -> .*/other \(different images\); "):
        run_training(dataclasses.replace(moved, epochs=2, dataset=str(tmp_path / "other")))
    shutil.rmtree(tmp_path / "b")
    write_packed(tmp_path / "b", SPLITS, row_group_rows=4)
    with pytest.raises(UserError, match=r"different settings: dataset: .*/b -> different images; "):
        run_training(dataclasses.replace(moved, epochs=2))


def test_a_run_of_a_version_that_stored_only_the_dataset_path(tmp_path):
    first = write_packed(tmp_path / "a", SPLITS)
    run = config(first, tmp_path, epochs=1, resume=True)
    run_training(run)
    for path in (tmp_path / "train" / "checkpoints").glob("*/meta.json"):
        values = json.loads(path.read_text())
        del values["dataset_id"]
        path.write_text(json.dumps(values))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied = dataclasses.replace(run, dataset=str(tmp_path / "b"))
    assert run_training(run).finished_before and run_training(copied).finished_before
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UserError, match="different settings: dataset: "):
        run_training(copied)


def test_the_content_id_depends_on_images_and_labels_not_on_paths(tmp_path):
    base = write_packed(tmp_path / "base", SPLITS)
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    copy = PackedDataset.open(str(tmp_path / "copy"))
    assert copy.content_id == base.content_id
    digests = [SplitImages.of(each, "test").digest() for each in (base, copy)]
    assert digests[0] == digests[1]
    relabeled = {**KEPT, "val": {**KEPT["val"], 1: 3}}
    ids = [
        open_dataset(write_cleaned(tmp_path / name, of, kept)).content_id
        for name, of, kept in (("one", base, KEPT), ("two", copy, KEPT), ("three", base, relabeled))
    ]
    assert ids[0] == ids[1] and len({base.content_id, *ids}) == 3


def test_a_study_whose_dataset_moved_is_the_same_study(tmp_path):
    first = write_packed(tmp_path / "a", SPLITS)
    study = TuneConfig(dataset=first.location.uri, output=str(tmp_path), name="study", space="demo", resume=True)
    planned = plan_study(study)
    for name, text in (("config.yaml", None), ("space.yaml", planned.space.text)):
        (tmp_path / "study" / name).write_text(text or f"dataset: {first.location.uri}\nspace: demo\n")
    (tmp_path / "study" / DATASETS).write_text(json.dumps(content_ids(planned.datasets)))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = dataclasses.replace(study, dataset=str(tmp_path / "b"))
    assert plan_study(moved).datasets[None].uri.endswith("/b")
    write_packed(tmp_path / "c", SPLITS, row_group_rows=4)
    with pytest.raises(UserError, match="a study of this name exists, with another dataset"):
        plan_study(dataclasses.replace(study, dataset=str(tmp_path / "c")))
