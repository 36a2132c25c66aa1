"""Tests the gallery: storing, adding new classes, rebuilding for other weights, and k-NN predictions."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from landmark.checkpoints.format import load_model, resolve_checkpoint
from landmark.cli import main
from landmark.commands.evaluate import evaluate
from landmark.commands.index import index
from landmark.commands.predict import write_predictions
from landmark.config import EvaluateConfig, IndexConfig, PredictConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.evaluation.predictions import from_lists
from landmark.inference import sources
from landmark.models import Embedder
from landmark.retrieval import gallery
from landmark.storage import locate
from landmark.training.run import run_training
from tests.support.packed import picture, write_packed
from tests.support.seaweed import Seaweed
from tests.training.test_run import config

SPLITS = {"train": [40], "val": [16], "test": [31]}


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Return the folder of a run on a dataset with four classes."""
    return run_training(config(write_packed(tmp_path / "dataset", SPLITS), tmp_path, epochs=6)).run


@pytest.fixture
def six_classes(tmp_path: Path) -> PackedDataset:
    """Return a dataset with two more classes."""
    return write_packed(tmp_path / "six", {"train": [60], "val": [12], "test": [36]}, classes=6)


def test_a_gallery_is_stored_with_the_run_and_evaluated(run, tmp_path, monkeypatch, capsys):
    found = evaluate(EvaluateConfig(run=run, by="both", bootstrap=20, neighbors=3))
    knn = found["knn"]
    assert (knn["gallery_images"], knn["voting"], knn["rows"]) == (40, 3, 31)
    assert knn["top1"] > 0.9 and {"gap", "macro_recall", "bands", "intervals", "ece"} <= knn.keys()
    assert "loss" in found and "loss" not in knn
    record = json.loads((tmp_path / "train" / "gallery" / "gallery.json").read_text())
    assert (record["images"], record["classes"], record["revision"]) == (40, 4, 1)
    assert "k-NN" in capsys.readouterr().out
    monkeypatch.setattr(gallery.Gallery, "add", None)  # no image may be embedded again
    knn_only = evaluate(EvaluateConfig(run=run, by="knn", bootstrap=20, neighbors=3))
    assert knn_only == knn and "k-NN: 3 nearest neighbors of 40 gallery images" in capsys.readouterr().out
    folder = tmp_path / "train" / "evaluation-test-knn"
    assert json.loads((folder / "metrics.json").read_text()) == knn_only
    stored = pq.read_table(folder / "predictions.parquet")
    assert "embedding" not in stored.column_names and stored["loss"].null_count == 31


def test_classes_are_added_without_training(run, six_classes, tmp_path, capsys):
    base = EvaluateConfig(run=run, dataset=six_classes.location.uri, bootstrap=0)
    with pytest.raises(UserError, match="its model has 4 classes"):
        evaluate(base)
    with pytest.raises(
        UserError, match=r"contains no image of 'c4', a class of .* \(2 classes are missing\); add them with landmark"
    ):
        evaluate(EvaluateConfig(run=run, dataset=six_classes.location.uri, bootstrap=0, by="knn"))
    weights = (resolve_checkpoint(run) / "model.safetensors").read_bytes()
    grown = index(IndexConfig(run=run, add=six_classes.location.uri))
    assert "added 60 images and 2 new classes" in capsys.readouterr().out
    assert grown.names == ["c0", "c1", "c2", "c3", "c4", "c5"] and grown.counts.tolist() == [20] * 4 + [10] * 2
    found = evaluate(EvaluateConfig(run=run, dataset=six_classes.location.uri, bootstrap=0, by="knn"))
    assert found["classes_present"] == 6 and found["top1"] > 0.9
    assert (resolve_checkpoint(run) / "model.safetensors").read_bytes() == weights
    again = index(IndexConfig(run=run, add=six_classes.location.uri))
    assert len(again) == 100 and "60 were already in the gallery" in capsys.readouterr().out


def new_photographs(folder: Path, labels: tuple[int, ...] = (4, 5)) -> Path:
    """Write class folders of new classes, with one file that is not an image."""
    for label in labels:
        (folder / f"new {label}").mkdir(parents=True)
        for number in range(8):
            (folder / f"new {label}" / f"{number}.jpg").write_bytes(picture(label, 500 + number, 48))
    (folder / f"new {labels[0]}" / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_a_folder_of_photographs_is_added_and_predictions_change(run, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for label in range(6):
        (folder / f"{label}.jpg").write_bytes(picture(label, 900, 40))
    options = PredictConfig(run=run, images=(str(folder),), output=str(tmp_path / "out"), by="knn", neighbors=3)
    before = predict(options)["name"].to_pylist()
    assert before[:4] == ["c0", "c1", "c2", "c3"] and set(before) <= set(before[:4])
    added = new_photographs(tmp_path / "added")
    index(IndexConfig(run=run, add=str(added)))
    assert "added 16 images and 2 new classes; 1 could not be read" in capsys.readouterr().out
    table = predict(options)
    assert table["name"].to_pylist() == [*before[:4], "new 4", "new 5"]
    assert table["nearest_image"][4].as_py().startswith("new 4/") and table["nearest_cosine"][4].as_py() > 0.9
    (added / "new 5" / "late.jpg").write_bytes(picture(5, 700, 48))
    assert len(index(IndexConfig(run=run, add=str(added)))) == 57
    (added / "loose.jpg").write_bytes(picture(5, 701, 48))
    with pytest.raises(UserError, match=r"loose\.jpg is not in a class folder; expected one folder per class"):
        index(IndexConfig(run=run, add=str(added)))
    assert len(index(IndexConfig(run=run))) == 57


def test_more_training_rebuilds_the_gallery_with_added_images(run, tmp_path, capsys):
    index(IndexConfig(run=run, add=str(new_photographs(tmp_path / "added"))))
    before = json.loads((tmp_path / "train" / "gallery" / "gallery.json").read_text())
    longer = run_training(config(PackedDataset.open(str(tmp_path / "dataset")), tmp_path, epochs=7, resume=True))
    capsys.readouterr()
    grown = index(IndexConfig(run=f"{run}/{longer.last_checkpoint}", gallery=f"{run}/gallery"))
    assert "built with different weights; embedding its images again" in capsys.readouterr().out
    assert before["weights"] != grown.weights and len(grown) == 56 and len(grown.classes) == 6
    folders = {path.name for path in (tmp_path / "train" / "gallery").iterdir()}
    assert folders == {"gallery.json", f"revision-{grown.revision:04d}"}


def test_predictions_match_the_model_and_are_stored_in_both_formats(run, tmp_path, capsys):
    folder = tmp_path / "images" / "below"
    folder.mkdir(parents=True)
    for label in range(4):
        (folder / f"{label}.jpg").write_bytes(picture(label, 900, 40))
    (folder / "broken.jpg").write_bytes(b"no picture")
    Image.new("1", (1500, 1000)).save(folder / "large.png")
    (folder / ".hidden.jpg").write_bytes(b"no picture")
    options = {"run": run, "images": (str(folder.parent),), "top_k": 3}
    table = predict(PredictConfig(output=str(tmp_path / "out"), max_megapixels=1, **options))
    assert table.column_names == ["image_id", "label", "landmark_id", "name", "score", *lower_rank_columns(3)]
    assert table["image_id"].to_pylist() == [f"below/{label}.jpg" for label in range(4)]
    assert table["name"].to_pylist() == ["c0", "c1", "c2", "c3"] == table["landmark_id"].to_pylist()
    printed = capsys.readouterr().out
    assert "4 images; 2 could not be read" in printed
    for reject in ("1 not an image (below/broken.jpg)", "1 too large (max_megapixels is 1) (below/large.png)"):
        assert reject in printed
    one = predict(PredictConfig(output=str(tmp_path / "one"), **options | {"images": (str(folder / "2.jpg"),)}))
    assert (one["image_id"].to_pylist(), one["name"].to_pylist()) == (["2.jpg"], ["c2"])
    (folder / "large.png").unlink()
    assert pq.read_table(tmp_path / "out" / "predictions.parquet").equals(table)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"predictions.parquet", "embeddings.parquet"}
    embeddings = pq.read_table(tmp_path / "out" / "embeddings.parquet")
    vectors = from_lists(embeddings["embedding"]).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    model, meta = load_model(resolve_checkpoint(run))
    reader = sources.FolderImages.of(locate(folder.parent), PackedDataset.open(str(tmp_path / "dataset"))).open(16, 8)
    (batch,) = reader.batches(0, 1)
    pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 255
    inputs = (pixels - torch.tensor(meta.mean)[:, None, None]) / torch.tensor(meta.std)[:, None, None]
    with torch.no_grad():
        expected = Embedder(model)(inputs).numpy()
    np.testing.assert_allclose(vectors, expected, atol=2e-3)
    median = sorted(table["score"].to_pylist())[2]
    rejected = predict(
        PredictConfig(output=str(tmp_path / "csv"), format="csv", embeddings=False, reject=float(median), **options)
    )
    assert rejected["label"].to_pylist().count(-1) == 2 == rejected["name"].null_count
    assert {path.name for path in (tmp_path / "csv").iterdir()} == {"predictions.csv"}
    read = pacsv.read_csv(tmp_path / "csv" / "predictions.csv")
    assert read["image_id"].to_pylist() == table["image_id"].to_pylist() and read["label"].equals(
        rejected["label"].cast(pa.int64())
    )
    assert "2 below the score threshold" in capsys.readouterr().out


def predict(config: PredictConfig) -> pa.Table:
    """Return the predictions that the command writes."""
    return write_predictions(config)[0]


def lower_rank_columns(top_k_labels: int) -> list[str]:
    """Return the columns of the predictions after the first."""
    return [f"{name}_{place}" for place in range(2, top_k_labels + 1) for name in ("name", "score")]


def test_ray_replicas_predict_the_same_as_one_process(run, ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_ROWS", 10)
    options = {"run": run, "images": (str(tmp_path / "dataset"),), "by": "knn"}
    one_process = predict(PredictConfig(output=str(tmp_path / "one process"), **options))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(25):
        (folder / f"{number:02d}.jpg").write_bytes(picture(number % 4, 900 + number, 40))
    assert len(one_process) == 31
    assert predict(PredictConfig(output=str(tmp_path / "two"), replicas=2, **options)).equals(one_process)
    options["images"] = (str(folder),)
    one = predict(PredictConfig(output=str(tmp_path / "files"), **options))
    two = predict(PredictConfig(output=str(tmp_path / "files of two"), replicas=2, **options))
    assert two.equals(one) and one["label"].to_pylist() == [number % 4 for number in range(25)]
    vectors = [pq.read_table(tmp_path / name / "embeddings.parquet") for name in ("files", "files of two")]
    assert vectors[0].equals(vectors[1])


def test_a_gallery_and_predictions_can_be_stored_in_a_bucket(run, s3: Seaweed, tmp_path):
    options = {"run": run, "by": "knn", "gallery": s3.uri("galleries/one"), "images": (s3.uri("asked"),)}
    for label in range(4):
        (locate(s3.uri("asked")) / f"{label}.jpg").write_bytes(picture(label, 900, 40))
    table = predict(PredictConfig(output=s3.uri("predicted"), format="csv", **options))
    assert table["name"].to_pylist() == ["c0", "c1", "c2", "c3"]
    assert (locate(s3.uri("predicted")) / "embeddings.parquet").exists()
    assert not (tmp_path / "train" / "gallery").exists()
    assert predict(PredictConfig(output=s3.uri("predicted"), **options)).equals(table)


def test_user_errors_print_one_line(run, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    base = ["predict", "--run", run, "--output", str(tmp_path / "out"), "--images"]
    for arguments, code, message in (
        ([*base, str(tmp_path / "none")], 1, "none: does not exist; pass a folder of images, or a packed dataset"),
        ([*base, str(empty)], 1, "empty: contains no files; pass a folder of images, or a packed dataset"),
        ([*base, str(empty), "--reject", "2"], 2, "reject is 2.0; expected a score from 0 to 1"),
        ([*base, str(empty), "--by", "knn", "--neighbors", "0"], 2, "neighbors is 0; expected 1 or more"),
        (["index", "--run", str(empty)], 1, "empty: contains no meta.json, run.json or study.json"),
        (["index", "--run", run, "--add", str(empty)], 1, "empty: contains no files"),
        ([*base, str(tmp_path / "dataset"), "--max-megapixels", "9"], 1, "max_megapixels applies to a folder of image"),
        ([*base, str(empty), "--max-megapixels", "0"], 2, "max_megapixels is 0; expected 1 to 4000"),
        (
            ["index", "--run", run, "--max-megapixels", "9"],
            2,
            "max_megapixels applies only to a folder of images to add",
        ),
        (
            ["evaluate", "--run", run, "--max-megapixels", "9"],
            2,
            "max_megapixels applies only to a folder of distractors",
        ),
    ):
        assert main(arguments) == code
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    index(IndexConfig(run=run))
    folder = tmp_path / "train" / "gallery"
    index_file = folder / "revision-0001" / "index.usearch"
    index_file.write_bytes(index_file.read_bytes()[:-100])
    assert main(["index", "--run", run]) == 1
    assert "index.usearch is corrupt; delete" in capsys.readouterr().err
    index_file.unlink()
    assert main(["index", "--run", run]) == 1
    assert "index.usearch: missing; delete the gallery" in capsys.readouterr().err
    (folder / "gallery.json").write_text("{")
    assert main(["index", "--run", run]) == 1
    assert "gallery.json: not valid JSON" in capsys.readouterr().err
    (folder / "gallery.json").write_text('{"version": 7}')
    assert main(["index", "--run", run]) == 1
    assert "version is 7, but this version of landmark reads 1" in capsys.readouterr().err
    (folder / "gallery.json").write_text("[]")
    assert main(["index", "--run", run]) == 1
    assert "version is None, but this version of landmark reads 1" in capsys.readouterr().err
    (folder / "gallery.json").write_text('{"version": 1, "revision": 1, "folder": "x", "weights": ""}')
    assert main(["index", "--run", run]) == 1
    assert "gallery.json: missing keys images, index_sha256, places; delete" in capsys.readouterr().err


def test_a_gallery_stores_the_megapixel_limit_of_a_folder(tmp_path):
    new_photographs(tmp_path / "added")
    plain = sources.FolderImages.of(locate(str(tmp_path / "added")))
    limited = dataclasses.replace(plain, max_megapixels=7)
    assert gallery.images_of(gallery.place_of(limited), "stop") == limited
    assert "max_megapixels" not in gallery.place_of(plain), "existing galleries store the folder under this key"
    assert gallery.images_of(gallery.place_of(plain), "stop") == plain


def test_a_full_disk_prints_one_line_and_keeps_the_gallery(run, tmp_path, monkeypatch, capsys):
    index(IndexConfig(run=run))
    added = new_photographs(tmp_path / "added")
    # Writing to /dev/full fails like a full disk.
    folder = tmp_path / "full"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "index.usearch").symlink_to("/dev/full")
    monkeypatch.setattr(gallery.tempfile, "TemporaryDirectory", lambda prefix: contextlib.nullcontext(folder / "inner"))
    assert main(["index", "--run", run, "--add", str(added)]) == 1
    error = capsys.readouterr().err
    assert "could not write the index" in error and error.count("\n") == 1
    monkeypatch.undo()
    assert len(index(IndexConfig(run=run))) == 40


def test_a_run_predicts_without_its_dataset(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(picture(0, 900, 40))
    index(IndexConfig(run=run))
    (tmp_path / "dataset").rename(tmp_path / "moved")
    options = {"run": run, "images": (str(folder),), "output": str(tmp_path / "out")}
    table = predict(PredictConfig(**options))
    assert table["name"].to_pylist() == ["c0"] and "landmark_id" not in table.column_names
    assert predict(PredictConfig(by="knn", **options))["landmark_id"].to_pylist() == ["c0"]
