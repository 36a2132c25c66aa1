"""Tests subsets end to end: training without repacking, evaluation on the same rows, studies, export."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from landmark.checkpoints.format import read_meta, resolve_checkpoint
from landmark.cli import main
from landmark.config import SubsetConfig, TuneConfig, to_yaml
from landmark.data.dataset import PackedDataset
from landmark.data.subset_view import Selection
from landmark.search.study import plan_study
from tests.support.packed import write_packed

SUBSET_FLAGS = ["--subset.classes", "4", "--subset.choose", "random", "--subset.max-images", "45"]
SUBSET_CONFIG = SubsetConfig(classes=4, choose="random", max_images=45)
FAST = ["--model.backbone", "reference_mlp", "--loader.image-size", "16", "--epochs", "1", "--no-tensorboard"]


def images_of(dataset: PackedDataset) -> dict[str, tuple[str, bytes]]:
    """Return the split and bytes of every image of a dataset by image ID."""
    found = {}
    for split, entry in dataset.manifest.splits.items():
        for shard in entry.shards:
            table = pq.read_table(Path(dataset.location.uri) / shard.path)
            for row in table.to_pylist():
                assert row["image_id"] not in found
                found[row["image_id"]] = split, row["image"]
    return found


def test_a_run_on_a_subset_is_evaluated_on_the_same_rows(small_dataset, tmp_path, capsys):
    run = ["train", "--dataset", small_dataset, "--output", str(tmp_path), *SUBSET_FLAGS, "--subset-seed", "3", *FAST]
    assert main(run) == 0
    assert main([*run, "--subset-seed", "4"]) == 1
    assert (
        "cannot resume with different settings: subset_seed: 3 -> 4; choose another --name" in capsys.readouterr().err
    )
    selection = Selection(PackedDataset.open(small_dataset), SUBSET_CONFIG, 3)
    meta = read_meta(resolve_checkpoint(str(tmp_path / "train")))
    assert (meta.classes, meta.subset, meta.subset_seed) == (selection.class_names, SUBSET_CONFIG, 3)
    assert main(["evaluate", "--run", str(tmp_path / "train")]) == 0
    metrics = json.loads((tmp_path / "train" / "evaluation-test" / "metrics.json").read_text())
    assert (metrics["rows"], metrics["classes"]) == (selection.split("test").rows, 4)


def test_a_run_of_an_older_version_keeps_its_subset(tmp_path, capsys):
    """It records no rule: its images were selected by rule 1, independent of the rule for new runs."""
    dataset = write_packed(tmp_path / "d", {"train": [80, 40], "val": [40], "test": [40]}, classes=6)
    run = ["train", "--dataset", dataset.location.uri, "--output", str(tmp_path), "--images", "60", *FAST]
    run += ["--recipe", "modern"]
    assert main([*run, "--subset.rule", "1"]) == 0
    config = tmp_path / "train" / "config.yaml"
    recorded = config.read_text()
    config.write_text(recorded.replace("  rule: 1\n", ""))
    exported = shutil.copytree(resolve_checkpoint(str(tmp_path / "train")).uri, tmp_path / "exported")
    meta = json.loads((exported / "meta.json").read_text())
    assert meta["subset"].pop("rule") == 1
    (exported / "meta.json").write_text(json.dumps(meta))
    old, new = (Selection(dataset, SubsetConfig(images=60, rule=rule), 0) for rule in (1, 2))
    capsys.readouterr()
    assert main(["evaluate", "--run", str(exported), "--output", str(tmp_path / "e")]) == 0
    rows = json.loads((tmp_path / "e" / "metrics.json").read_text())["rows"]
    assert rows == old.split("test").rows != new.split("test").rows
    assert main([*run, "--resume"]) == 0
    assert "train: its subset was chosen by rule 1" in capsys.readouterr().out
    # The run is finished: its config.yaml stays unchanged until it is trained again.
    assert config.read_text() == recorded.replace("  rule: 1\n", "")
    assert main([*run, "--epochs", "2", "--resume"]) == 0
    assert config.read_text() == recorded.replace("epochs: 1\n", "epochs: 2\n", 1).replace(
        "resume: false", "resume: true"
    )
    assert main([*run, "--name", "fresh"]) == 0
    assert read_meta(resolve_checkpoint(str(tmp_path / "fresh"))).subset == new.subset


def test_a_study_of_an_older_version_keeps_its_subset(small_dataset, tmp_path, capsys):
    config = TuneConfig(
        dataset=small_dataset,
        space="demo",
        output=str(tmp_path),
        resume=True,
        subset=SubsetConfig(images=300),
        test="none",
    )
    older = dataclasses.replace(config, subset=SubsetConfig(images=300, rule=1))
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "config.yaml").write_text(to_yaml(older).replace("  rule: 1\n", ""))
    assert plan_study(config).datasets[None].subset == older.subset
    assert "tune: its subset was chosen by rule 1" in capsys.readouterr().out
    assert plan_study(dataclasses.replace(config, name="fresh")).datasets[None].subset == config.subset


def test_several_workers_train_on_a_subset_and_count_lost_images(ray_cluster, tmp_path, capfd):
    """Both ranks take the same number of steps, or DDP would hang. The lost images of both are summed."""
    dataset = write_packed(tmp_path / "d", {"train": [80, 40], "val": [20]}, classes=6)
    selection = Selection(dataset, SUBSET_CONFIG, 0)
    shard = selection.split("train").shards[1]
    (tmp_path / "d" / shard.path).unlink()
    lost = selection.catalog("train")["shard"].to_pylist().count(1)
    workers = ["--workers.count", "2", "--workers.cpus", "0.5", "--loader.reader-cpus", "0.1"]
    run = ["train", "--dataset", str(tmp_path / "d"), "--output", str(tmp_path), *SUBSET_FLAGS, *FAST, *workers]
    assert main([*run, "--loader.corrupt", "skip"]) == 0
    assert read_meta(resolve_checkpoint(str(tmp_path / "train"))).classes == selection.class_names
    rows = list(csv.DictReader((tmp_path / "train" / "history.csv").open()))
    assert [row["lost_images"] for row in rows] == [str(lost)] and lost > 0
    assert f"{shard.path}: missing" in capfd.readouterr().out


def test_all_trials_of_a_study_use_the_subset(small_dataset, tmp_path):
    (tmp_path / "space.yaml").write_text(
        "recipe: {epochs: 1, model: {backbone: reference_mlp}, loader: {image_size: 16, decode_threads: 1}}\n"
        "parameters: {optimizer.lr: {grid: [0.01, 0.02]}}\n"
    )
    run = ["tune", "--dataset", small_dataset, "--output", str(tmp_path), "--space", str(tmp_path / "space.yaml")]
    assert main([*run, *SUBSET_FLAGS]) == 0
    selection = Selection(PackedDataset.open(small_dataset), SUBSET_CONFIG, 0)
    assert read_meta(resolve_checkpoint(str(tmp_path / "tune"))).classes == selection.class_names
    study = json.loads((tmp_path / "tune" / "study.json").read_text())
    assert study["failed"] == 0 and study["finished"] == 2
    metrics = json.loads((tmp_path / "tune" / "evaluation-test" / "metrics.json").read_text())
    assert metrics["rows"] == selection.split("test").rows


def test_a_subset_is_exported_with_unchanged_bytes_and_splits(small_dataset, tmp_path, capsys):
    output = str(tmp_path / "d")
    command = ["prepare", "--source", "dataset", "--dataset.path", small_dataset, "--output", output]
    assert main([*command, *SUBSET_FLAGS, "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    before, after = PackedDataset.open(small_dataset), PackedDataset.open(output)
    selection = Selection(before, SUBSET_CONFIG, 5)
    ids = {
        image_id for split in ("train", "val", "test") for image_id in selection.catalog(split)["image_id"].to_pylist()
    }
    images = images_of(before)
    assert images_of(after) == {image_id: images[image_id] for image_id in ids}
    assert after.class_names == selection.class_names
    assert f"packed {len(ids)} images" in printed and "images per class: maximum 45" in printed
    assert (Path(output) / "classes.png").read_bytes().startswith(b"\x89PNG")
    assert main(["prepare", "--output", output, "--verify"]) == 0


@pytest.mark.parametrize("path", ["", "/none"])
def test_a_source_that_is_not_a_dataset_is_named(path, tmp_path, capsys):
    command = ["prepare", "--source", "dataset", "--output", str(tmp_path / "d")]
    code = main([*command, "--dataset.path", path] if path else command)
    error = capsys.readouterr().err
    assert (code, "/none: no manifest.json" in error) == ((1, True) if path else (2, False))
    assert len(error.strip().splitlines()) == 1
