"""Tests inference: each image is predicted once, in one process or by Ray Data replicas, and killed jobs resume."""

import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from landmark.checkpoints.format import resolve_checkpoint
from landmark.commands.evaluate import evaluate
from landmark.config import EvaluateConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.inference import job as job_module
from landmark.inference import sources
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.inference.job import PARTS, Job, Replicas, infer, replicas_on
from landmark.inference.model import Model, load
from landmark.inference.sources import SplitImages
from landmark.storage import Location, locate
from landmark.training.run import run_training
from tests.support.packed import picture, write_packed
from tests.training.test_run import config

ROWS = 93


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedDataset, Location]:
    """Return a dataset with 93 test images and a model trained on it for one epoch."""
    folder = tmp_path_factory.mktemp("inference")
    dataset = write_packed(folder / "dataset", {"train": [40], "val": [16], "test": [50, ROWS - 50]}, classes=4)
    run_training(config(dataset, folder, epochs=1))
    return dataset, resolve_checkpoint(str(folder / "train"))


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PART_ROWS", 10)


def job_of(checkpoint: Location, dataset: PackedDataset, top_k: int, batch_size: int, **settings) -> Job:
    """Return a job for the test split."""
    images = SplitImages.of(dataset, "test")
    return Job(checkpoint=checkpoint.uri, images=images, top_k=top_k, batch_size=batch_size, **settings)


@pytest.mark.usefixtures("_small_shards")
@pytest.mark.parametrize("batch_size", [4, 128])
def test_every_image_is_predicted_once_for_any_shard_size(trained, batch_size):
    dataset, checkpoint = trained
    job = job_of(checkpoint, dataset, 3, batch_size)
    assert job.parts == 10
    found = infer(job, None, quiet=True).predictions
    assert np.array_equal(found.samples, np.arange(ROWS))
    assert found.image_ids[7] == "test000007" and found.labels[7] == 3
    assert found.top_k_labels.shape == (ROWS, 3) and (np.diff(found.scores, axis=1) <= 0).all()


def test_flips_average_each_image_and_its_mirror_image(trained, tmp_path, capsys):
    dataset, checkpoint = trained
    plain = infer(job_of(checkpoint, dataset, 4, 16, embeddings=True), None, quiet=True).predictions
    job = job_of(checkpoint, dataset, 4, 16, flips=True, embeddings=True)
    found = infer(job, None, quiet=True).predictions
    assert (
        not np.allclose(found.scores, plain.scores, atol=1e-4)
        and job.folder != dataclasses.replace(job, flips=False).folder
    )
    model, flipped = load(str(checkpoint)), load(str(checkpoint), tta="flip")
    pixels = np.asarray(Image.open(io.BytesIO(picture(1, 2, 48))))
    both = [_logarithms(model, image) for image in (pixels, pixels[:, ::-1])]
    found = _logarithms(flipped, pixels)
    mean = (both[0] + both[1]) / 2
    np.testing.assert_allclose(found, mean - np.log(np.exp(mean).sum()), atol=0.02)
    config = EvaluateConfig(run=str(checkpoint), dataset=dataset.location.uri, output=str(tmp_path), tta="flip")
    assert evaluate(config)["tta"] == "flip" and "test-time augmentation: flip" in capsys.readouterr().out
    with pytest.raises(ValueError, match="tta is flip, but by is knn"):
        dataclasses.replace(config, by="knn")
    with pytest.raises(UserError, match="tta is 'ten'; expected none or flip"):
        load(str(checkpoint), tta="ten")


def _logarithms(model: Model, image: np.ndarray) -> np.ndarray:
    """Return the logarithms of the classes' probabilities, by label."""
    found = sorted(model.predict(image, 4), key=lambda prediction: prediction.label)
    return np.log([prediction.score for prediction in found])


@pytest.mark.usefixtures("_small_shards")
def test_ray_data_replicas_give_the_same_predictions(trained, ray_cluster, tmp_path):
    dataset, checkpoint = trained
    job = job_of(checkpoint, dataset, 3, 16)
    one_process = infer(job, None, quiet=True).predictions
    found = infer(job, locate(tmp_path), replicas=Replicas(count=2), quiet=True)
    assert found.fresh == ROWS
    for name in ("samples", "image_ids", "labels", "top_k_labels", "scores", "losses"):
        assert np.array_equal(getattr(found.predictions, name), getattr(one_process, name)), name
    again = infer(job, locate(tmp_path), replicas=Replicas(count=2), quiet=True)
    assert again.fresh == 0 and np.array_equal(again.predictions.top_k_labels, one_process.top_k_labels)


@pytest.mark.parametrize(
    ("count", "gpus", "expected"),
    [
        (None, 0, (1, 0.0)),
        (None, 1, (1, 1.0)),
        (None, 3, (3, 1.0)),
        (2, 4, (2, 1.0)),
        (4, 2, (4, 0.5)),
        (3, 2, (3, 0.5)),
        (6, 2, (6, 0.3333)),
    ],
)
def test_replicas_use_or_share_the_gpus_of_the_cluster(count, gpus, expected, capsys):
    found = replicas_on(count, 1.0, gpus, 8)
    assert (found.count, found.gpus) == expected
    assert ("share" in capsys.readouterr().err) == (0 < found.gpus < 1)


KILLED = """
import sys, time
from landmark.inference import job, sources
sources.PART_ROWS = 10
infer = job.Replica.infer
def slow(self, part, tell=None):
    table = infer(self, part, tell)
    print("shard", part, flush=True)
    time.sleep(0.3)
    return table
job.Replica.infer = slow
from landmark.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_evaluation_resumes_with_the_same_result(trained, tmp_path, monkeypatch, capsys):
    dataset, checkpoint = trained
    command = [
        "evaluate",
        "--run",
        str(checkpoint),
        "--dataset",
        dataset.location.uri,
        "--output",
        str(tmp_path / "killed"),
    ]
    job = subprocess.Popen([sys.executable, "-c", KILLED, *command], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("shard 3"):
            os.kill(job.pid, signal.SIGKILL)
            break
    job.wait()
    shards = list((tmp_path / "killed" / PARTS).glob("*/*.parquet"))
    assert len(shards) in (4, 5)
    monkeypatch.setattr(sources, "PART_ROWS", 10)
    inferred = []
    plain = job_module.Replica.infer
    monkeypatch.setattr(
        job_module.Replica, "infer", lambda self, part, tell=None: inferred.append(part) or plain(self, part, tell)
    )
    base = EvaluateConfig(run=str(checkpoint), dataset=dataset.location.uri)
    summary = evaluate(dataclasses.replace(base, output=str(tmp_path / "killed")))
    assert f"resuming: {len(shards)} of 10 shards are complete" in capsys.readouterr().out
    assert len(inferred) == 10 - len(shards)
    assert not (tmp_path / "killed" / PARTS).exists()
    assert evaluate(dataclasses.replace(base, output=str(tmp_path / "uninterrupted"))) == summary
    stored = [pq.read_table(tmp_path / name / "predictions.parquet") for name in ("killed", "uninterrupted")]
    assert stored[0].equals(stored[1])


@pytest.mark.usefixtures("_small_shards")
def test_shards_of_another_model_or_setting_are_not_reused(trained, tmp_path):
    dataset, checkpoint = trained
    first = job_of(checkpoint, dataset, 3, 16)
    infer(first, locate(tmp_path), quiet=True)
    other = job_of(checkpoint, dataset, 2, 16)
    assert other.folder != first.folder
    assert infer(other, locate(tmp_path), quiet=True).fresh == ROWS


def test_lost_images_are_counted_and_a_corrupt_shard_is_named(trained, tmp_path):
    dataset, checkpoint = trained
    broken = tmp_path / "dataset"
    shutil.copytree(str(dataset.location.local_path()), broken)
    (broken / "test" / "00000.parquet").write_bytes(b"no parquet")
    opened = PackedDataset.open(str(broken))
    found = evaluate_checkpoint(checkpoint, opened, "test", Settings(topk=(1,), corrupt="skip", samples=20, quiet=True))
    assert (found.summary["rows"], found.summary["lost_images"]) == (ROWS - 50, 50)
    with pytest.raises(UserError, match="00000.parquet: corrupt"):
        evaluate_checkpoint(checkpoint, opened, "test", Settings(topk=(1,), quiet=True))


def test_two_models_are_compared_on_the_same_images(trained, tmp_path, capsys):
    dataset, checkpoint = trained
    run = run_training(config(dataset, tmp_path, epochs=2, name="longer"))
    summary = evaluate(
        EvaluateConfig(
            run=str(checkpoint),
            against=run.run,
            output=str(tmp_path / "out"),
            bootstrap=50,
            by="both",
            neighbors=3,
        )
    )
    output = capsys.readouterr().out
    assert "McNemar's p" in output and "k-NN" in output
    assert summary["knn"]["top10"] == 1.0 and 0 <= summary["knn"]["top1"] <= 1
    table = pq.read_table(tmp_path / "out" / "comparison.parquet")
    assert table["sample"].to_pylist() == list(range(ROWS))
    examples = pq.read_table(tmp_path / "out" / "examples.parquet")
    assert set(examples["kind"].to_pylist()) <= {"mistake", "pair", "class"}
    assert all(data[:2] == b"\xff\xd8" for data in examples["thumbnail"].to_pylist())
    with pytest.raises(UserError, match="not enough CPUs for 900 replicas"):
        evaluate(EvaluateConfig(run=str(checkpoint), replicas=900, output=str(tmp_path / "out")))


def test_distractors_count_for_gap_and_rejection(trained, tmp_path, capsys):
    dataset, checkpoint = trained
    distractors = tmp_path / "distractors" / "deeper"
    distractors.mkdir(parents=True)
    for number in range(5):
        (distractors / f"{number}.jpg").write_bytes(picture(100 + number, number, 40))
    (distractors / "broken.jpg").write_bytes(b"no picture")
    base = EvaluateConfig(run=str(checkpoint), dataset=dataset.location.uri, bootstrap=20, batch_size=4)
    plain = evaluate(dataclasses.replace(base, output=str(tmp_path / "plain")))
    found = evaluate(dataclasses.replace(base, distractors=str(distractors.parent), output=str(tmp_path / "folder")))
    assert (found["rows"], found["rows_without_landmark"], found["distractors_refused"]) == (ROWS, 5, 1)
    assert 0 <= found["rejection_auroc"] <= 1 and found["gap"] <= plain["gap"] and found["top1"] == plain["top1"]
    stored = pq.read_table(tmp_path / "folder" / "predictions.parquet")
    assert stored["label"].to_pylist()[ROWS:] == [-1] * 5 and stored["loss"].null_count == 5
    again = evaluate(dataclasses.replace(base, distractors=dataset.location.uri, output=str(tmp_path / "dataset")))
    assert again["rows_without_landmark"] == 40 + 16 + ROWS
    assert "images without a landmark" in capsys.readouterr().out
    (distractors / "broken.jpg").rename(tmp_path / "distractors" / "broken.jpg")
    shutil.rmtree(distractors)
    with pytest.raises(UserError, match="no readable image"):
        evaluate(dataclasses.replace(base, distractors=str(tmp_path / "distractors"), output=str(tmp_path / "none")))
    with pytest.raises(UserError, match="does not exist"):
        evaluate(dataclasses.replace(base, distractors=str(tmp_path / "nowhere"), output=str(tmp_path / "none")))
