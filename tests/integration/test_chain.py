"""Tests the commands prepare, tune, evaluate and report end to end on real photographs, on disk and on S3."""

import csv
import json
from pathlib import Path

import pytest

from landmark.cli import main
from landmark.data.dataset import PackedDataset
from landmark.storage.tables import read_table
from tests.support.seaweed import Seaweed

CLASSES = 24
SPACE = """
metric: val_top1
recipe:
  model: {backbone: reference_mlp}
  schedule: {name: constant}
  optimizer: {name: adam}
  loss: {label_smoothing: 0.1}
  loader: {image_size: 32, batch_size: 32, decode_threads: 1}
parameters:
  optimizer.lr: {grid: [1.0e-3, 1.0e-9]}
  epochs: {grid: [2, 3]}
scheduler: {name: asha, grace_epochs: 1, reduction_factor: 2}
"""


@pytest.fixture(scope="module")
def packed(ray_cluster: None, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("monuments") / "dataset")
    source = ["--folders.path", str(photographs / "monuments"), "--folders.groups"]
    arguments = ["--source", "folders", *source, str(photographs / "monuments" / "groups.csv")]
    assert main(["prepare", "--output", output, *arguments, "--packing.short-side", "64"]) == 0
    return output


def test_every_photograph_is_packed_once_and_groups_stay_together(packed, photographs):
    dataset = PackedDataset.open(packed)
    split_of = {}
    for split in ("train", "val", "test"):
        for image_id in dataset.catalog(split)["image_id"].to_pylist():
            assert image_id not in split_of
            split_of[image_id] = split
    assert set(split_of) == {path.stem for path in (photographs / "monuments").glob("*/*.jpg")}
    assert len(read_table(dataset.location / "rejects.parquet")) == 0
    assert dataset.num_classes == CLASSES
    for split in ("train", "val", "test"):
        assert (dataset.label_counts(split) > 0).all()
    groups: dict[str, set[str]] = {}
    for row in csv.DictReader((photographs / "monuments" / "groups.csv").open()):
        groups.setdefault(row["group"], set()).add(split_of[row["id"]])
    assert all(len(splits) == 1 for splits in groups.values())


def test_a_study_of_photographs_learns_and_is_reported(packed, tmp_path, capsys):
    (tmp_path / "space.yaml").write_text(SPACE)
    run = ["--dataset", packed, "--output", str(tmp_path), "--space", str(tmp_path / "space.yaml")]
    assert main(["tune", *run, "--name", "study", "--max-concurrent", "2"]) == 0
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    majority = study["baselines"]["majority"]["1"]
    assert study["trials"] == 4 and study["failed"] == 0
    # Trials with the higher learning rate run first, so the others do not pass the first rung.
    assert study["stopped_early"] >= 2 and study["epochs_run"] <= 7 < study["epochs_grid"] == 10
    assert study["best"]["test"]["1"] > 2 * majority
    capsys.readouterr()
    assert main(["evaluate", "--run", str(tmp_path / "study"), "--topk", "1", "3"]) == 0
    output = capsys.readouterr().out
    assert f"{study['best']['test']['1']:.2%}" in output and f"{majority:.2%}" in output
    assert main(["report", "--run", str(tmp_path / "study")]) == 0
    assert "reference_mlp" in capsys.readouterr().out
    summary = list(csv.DictReader((tmp_path / "study" / "report" / "optimizer_epochs.csv").open()))
    assert {"adam/1"} < {row["optimizer/epochs"] for row in summary} <= {"adam/1", "adam/2", "adam/3"}
    assert "<img" in (tmp_path / "study" / "report" / "index.html").read_text()


def test_one_run_from_s3_to_s3(packed, s3: Seaweed, tmp_path, photographs):
    source = ["--source", "folders", "--folders.path", str(photographs / "monuments"), "--packing.short-side", "48"]
    dataset = s3.uri("monuments/dataset")
    assert main(["prepare", "--output", dataset, *source]) == 0
    model = [
        "--model.backbone",
        "reference_mlp",
        "--loader.image-size",
        "32",
        "--epochs",
        "2",
        "--optimizer.name",
        "adam",
    ]
    assert main(["train", "--dataset", dataset, "--output", s3.uri("monuments/runs"), "--name", "one", *model]) == 0
    assert main(["evaluate", "--run", s3.uri("monuments/runs/one")]) == 0
    assert main(["report", "--run", s3.uri("monuments/runs/one"), "--output", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "index.html").exists()
