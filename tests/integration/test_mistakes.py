"""Tests that each user error prints one line with the cause and the fix, and no traceback."""

import re
from pathlib import Path

import pytest

from landmark.cli import main
from tests.support.packed import write_packed
from tests.support.seaweed import Seaweed


@pytest.fixture
def files(ray_cluster: None, tmp_path: Path) -> Path:
    """Return a folder with two datasets of different classes and with invalid files."""
    write_packed(tmp_path / "dataset", {"train": [40], "val": [10], "test": [10]}, classes=4)
    write_packed(tmp_path / "three", {"train": [40], "val": [10], "test": [10]}, classes=3)
    for name, text in (
        ("bad.yaml", "parameters:\n  epochs: {grid: [1, 2}\n"),
        ("typo.yaml", "parameters:\n  model.bakbone: {grid: [resnet18]}\n"),
        ("key.yaml", "metrik: val_top1\nparameters: {epochs: {grid: [1]}}\n"),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "classes" / "a").mkdir(parents=True)
    (tmp_path / "classes" / "b").mkdir()
    (tmp_path / "classes" / "a" / "1.jpg").write_bytes(b"")
    return tmp_path


TRAIN = ["train", "--dataset", "{}/dataset", "--output", "{}/runs", "--loader.image-size", "16", "--recipe", "modern"]
TUNE = ["tune", "--dataset", "{}/dataset", "--output", "{}/runs"]
FOLDERS = ["prepare", "--output", "{}/out", "--source", "folders"]


def without_link(error: str) -> str:
    """Return an error without the link to its entry on the page Troubleshooting."""
    return re.sub(r" \(see docs/troubleshooting\.md#[a-z0-9-]+\)$", "", error, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([*FOLDERS, "--folders.path", "{}/none"], 1, "prepare: error: {}/none: no such file or folder; check the path"),
        (
            [*FOLDERS, "--folders.path", "{}/classes"],
            1,
            "prepare: error: {}/classes/b: class folder without images (1 such folders); remove it or add images",
        ),
        (
            [*TRAIN, "--model.backbone", "resnt18"],
            1,
            "train: error: model.backbone is 'resnt18'; did you mean 'resnet18'? (`landmark models --all` lists all)",
        ),
        (
            [*TUNE, "--space", "{}/bad.yaml"],
            2,
            "tune: error: {}/bad.yaml: line 2, column 23 expected ',' or ']', but got '}}'; expected 'key: value' lines",
        ),
        ([*TRAIN, "--epochs", "0"], 2, "train: error: epochs is 0; expected 1 or more"),
        (
            [*TUNE, "--space", "{}/typo.yaml"],
            2,
            "tune: error: {}/typo.yaml: parameters.model.bakbone: not a key of a recipe; did you mean 'model.backbone'?",
        ),
        (
            [*TUNE, "--space", "{}/key.yaml"],
            2,
            "tune: error: {}/key.yaml: unknown key 'metrik'; did you mean 'metric'?",
        ),
        (
            ["prepare", "--source", "synthetic", "--output", "/proc/none/d"],
            1,
            "prepare: error: /proc/none/d: cannot be written to: no such folder; check the path",
        ),
        (
            [*TRAIN, "--workers.count", "9", "--batch-size", "64"],
            1,
            "train: error: not enough resources for the run: it requires 9 x 1 CPUs for workers + 18 x 0.25 CPUs for data readers, but the "
            "cluster's nodes have 4 CPUs; lower workers.count to 2, or add nodes",
        ),
    ],
)
def test_a_user_error_prints_one_line(files, capsys, arguments, code, message):
    command = [argument.format(files) for argument in arguments]
    assert main(command) == code
    assert without_link(capsys.readouterr().err) == f"landmark {message.format(files)}\n"


def test_a_checkpoint_for_other_classes_prints_one_line(files, capsys):
    small = ["--model.backbone", "reference_mlp", "--loader.image-size", "16", "--epochs", "1", "--name", "run"]
    assert main(["train", "--dataset", f"{files}/three", "--output", f"{files}/runs", *small]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", f"{files}/runs/run", "--dataset", f"{files}/dataset"]) == 1
    error = capsys.readouterr().err
    assert "its model has 3 classes, but" in error and "has 4; evaluate it on the dataset it was trained on" in error
    assert error.count("\n") == 1


def test_wrong_credentials_and_an_unwritable_bucket_print_one_line(s3: Seaweed, capsys, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "read-only")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "read-only-secret")
    assert main(["prepare", "--source", "synthetic", "--output", s3.uri("mistakes/denied")]) == 1
    denied = "access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's permissions"
    assert without_link(capsys.readouterr().err).endswith(f"mistakes/denied: cannot be written to: {denied}\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert main(["train", "--dataset", s3.uri("mistakes/any")]) == 1
    error = without_link(capsys.readouterr().err)
    assert error == f"landmark train: error: {s3.uri('mistakes/any/manifest.json')}: {denied}\n"
