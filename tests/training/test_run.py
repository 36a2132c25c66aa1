"""Tests training with one worker end to end: learning, resuming, early stopping, output files and errors."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import landmark
import landmark.checkpoints.format as checkpoint_format
from landmark.checkpoints.format import load_model, read_weights, resolve_checkpoint
from landmark.cli import main
from landmark.commands.evaluate import evaluate
from landmark.config import (
    ComputeConfig,
    EarlyStoppingConfig,
    EvaluateConfig,
    HeadConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    ResizingConfig,
    SubsetConfig,
    TrainConfig,
    UserError,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.jpeg import decode_batch
from landmark.data.subset_view import open_dataset
from landmark.inference.evaluation import Settings, evaluate_checkpoint
from landmark.storage import locate
from landmark.training.run import run_training
from tests.support.packed import picture, write_packed
from tests.support.runs import history
from tests.support.runs import small_run as config

FP32 = ComputeConfig(amp="off")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("packed")
    return write_packed(folder, {"train": [50, 47], "val": [21], "test": [23]}, classes=4)


def weights(output: Path, name: str = "train") -> dict[str, torch.Tensor]:
    found = json.loads((output / name / "run.json").read_text())["last_checkpoint"]
    return read_weights(output / name / found)


def test_a_run_learns_and_writes_all_documented_files(dataset, tmp_path, capsys, monkeypatch):
    result = run_training(config(dataset, tmp_path, epochs=8, tensorboard=True, profile_steps=2, compute=FP32))
    assert result.best["val_top1"] > 0.9
    run = tmp_path / "train"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "history.csv", "run.json", "checkpoints", "tensorboard"}
    assert (run / "profile" / "rank-0.json.gz").stat().st_size > 1000
    assert [row["epoch"] for row in history(tmp_path)] == [str(epoch) for epoch in range(1, 9)]
    assert len(list((run / "checkpoints").iterdir())) <= 4
    assert "epoch 8/8: train loss" in capsys.readouterr().out
    model, meta = load_model(resolve_checkpoint(str(run)))
    assert meta.classes == ["c0", "c1", "c2", "c3"] and not model.training
    settings = Settings(topk=(1, 5), batch_size=7)
    calibrated = evaluate_checkpoint(resolve_checkpoint(str(run)), dataset, "val", settings)
    monkeypatch.setattr(checkpoint_format, "with_temperature", lambda model, temperature: model)
    again = evaluate_checkpoint(resolve_checkpoint(str(run)), dataset, "val", settings)
    assert again.summary["top1"] == calibrated.summary["top1"] == pytest.approx(result.best["val_top1"])
    assert meta.temperature != 1 and calibrated.summary["loss"] != again.summary["loss"]
    # Validation uses the precision of training, which would be bf16 on some CPUs. Evaluation on CPUs uses fp32.
    assert again.summary["loss"] == pytest.approx(result.best["val_loss"], rel=1e-4)
    assert again.summary["rows"] == 21


def test_the_center_crop_is_part_of_the_model(dataset, tmp_path):
    """Training validates, evaluates and predicts with the same crop."""
    loader = LoaderConfig(image_size=16, crop_pct=0.6, batch_size=16, decode_threads=2)
    result = run_training(config(dataset, tmp_path, loader=loader, compute=FP32))
    checkpoint = resolve_checkpoint(result.run)
    _, meta = load_model(checkpoint)
    assert meta.crop_pct == 0.6
    found = evaluate_checkpoint(checkpoint, dataset, "val", Settings(topk=(1,)))
    assert found.summary["top1"] == pytest.approx(result.best["val_top1"])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(photo := picture(1, 3, 32))
    model = landmark.load(result.run)
    seen = model.preprocess(photo)
    distance = {}
    for crop_pct in (0.6, 0.95):
        pixels = torch.from_numpy(decode_batch([photo], np.array([0]), 16, crop_pct=crop_pct)[0])
        distance[crop_pct] = float((model._normalise(pixels)[0] - seen).abs().mean())
    assert distance[0.6] < 0.3 * distance[0.95]
    predicted = landmark.Model.predict(model, photo, top_k=1)[0].score
    assert main(["predict", result.run, str(tmp_path / "photos"), "-o", str(tmp_path / "out")]) == 0
    score = pq.read_table(tmp_path / "out" / "predictions.parquet")["score"][0].as_py()
    assert score == pytest.approx(predicted, abs=1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(dataset, tmp_path):
    uninterrupted = config(dataset, tmp_path / "uninterrupted")
    run_training(uninterrupted)
    run_training(config(dataset, tmp_path / "resumed", epochs=2))
    run_training(config(dataset, tmp_path / "resumed", resume=True))
    for name, tensor in weights(tmp_path / "uninterrupted").items():
        assert torch.equal(tensor, weights(tmp_path / "resumed")[name])
    assert [row["epoch"] for row in history(tmp_path / "resumed")] == ["1", "2", "3", "4"]


def test_a_seed_reproduces_the_run_and_another_seed_does_not(dataset, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_training(config(dataset, tmp_path, name=name, seed=seed, epochs=1))
    first, same, other = (next(iter(weights(tmp_path, name).values())) for name in "abc")
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_early_stopping_ends_a_run_that_no_longer_improves(dataset, tmp_path):
    stale = config(
        dataset,
        tmp_path,
        epochs=20,
        optimizer=OptimizerConfig(name="sgd", lr=1e-12),
        early_stopping=EarlyStoppingConfig(patience=2),
    )
    result = run_training(stale)
    assert result.stopped_early and result.epochs_run == 3
    assert run_training(dataclasses.replace(stale, resume=True)).epochs_run == 3


def test_the_saved_config_equals_the_config_of_the_run(dataset, tmp_path):
    from landmark.config import load_yaml

    first = config(dataset, tmp_path)
    run_training(first)
    assert load_yaml(TrainConfig, tmp_path / "train" / "config.yaml") == first


def test_the_best_checkpoint_is_kept_when_later_ones_are_worse(dataset, tmp_path):
    result = run_training(config(dataset, tmp_path, epochs=6, monitor="val_loss"))
    rows = history(tmp_path)
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert result.best["epoch"] == float(best["epoch"])
    assert result.best_checkpoint.endswith(f"epoch-{int(best['epoch']):04d}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "/none"}, "/none: no manifest.json"),
        (
            {"model": ModelConfig(backbone="reference_mpl")},
            "model.backbone is 'reference_mpl'; did you mean 'reference_mlp'",
        ),
        ({"output": "/proc/none"}, "/proc/none"),
        (
            {"resizing": ResizingConfig(start_size=16), "loader": LoaderConfig(image_size=32)},
            "resizing.start_size is 16: reference_mlp built for 32 pixels does not accept it",
        ),
        ({"optimizer": OptimizerConfig(name="sgd", lr=1e12)}, "the loss became .* lower optimizer.lr"),
    ],
)
def test_user_errors_are_one_line(dataset, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run_training(config(dataset, tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_long_tailed_subset_makes_a_different_run(dataset, tmp_path):
    tail = config(dataset, tmp_path, epochs=1, subset=SubsetConfig(tail=1.0))
    run_training(tail)
    with pytest.raises(
        UserError, match="cannot resume with different settings: subset.tail: 1.0 -> 0.5; choose another --name"
    ):
        run_training(dataclasses.replace(tail, subset=SubsetConfig(tail=0.5)))
    found = evaluate_checkpoint(
        resolve_checkpoint(str(tmp_path / "train")), open_dataset(dataset.location.uri, tail.subset), "test"
    )
    assert found.train_counts.tolist() == [25, 12, 8, 6] and found.summary["rows"] == 23


def test_a_checkpoint_for_other_classes_is_refused(dataset, tmp_path):
    run_training(config(dataset, tmp_path, epochs=1))
    other = write_packed(tmp_path / "other", {"train": [20], "test": [10]}, classes=3)
    with pytest.raises(UserError, match="its model has 4 classes, but .* has 3"):
        evaluate(EvaluateConfig(run=str(tmp_path / "train"), dataset=other.location.uri))
    no_test = write_packed(tmp_path / "no test", {"train": [20], "test": []}, classes=4)
    with pytest.raises(UserError, match="the test split is empty"):
        evaluate(EvaluateConfig(run=str(tmp_path / "train"), dataset=no_test.location.uri))
    with pytest.raises(UserError, match="does not exist"):
        evaluate(EvaluateConfig(run=str(tmp_path / "nothing")))


def test_evaluate_writes_its_files(dataset, tmp_path, capsys):
    run_training(config(dataset, tmp_path, epochs=1))
    summary = evaluate(EvaluateConfig(run=str(tmp_path / "train"), topk=(1, 3)))
    folder = tmp_path / "train" / "evaluation-test"
    assert json.loads((folder / "metrics.json").read_text()) == summary
    files = {"metrics.json", "per_class.csv", "confusion.csv", "confusion.png", "calibration.csv", "bands.csv"}
    assert {p.name for p in folder.iterdir() if p.suffix != ".parquet"} == files
    stored = {p.stem for p in folder.glob("*.parquet")}
    assert stored == {"predictions", "per_class", "examples"}
    cells = list(csv.DictReader((folder / "confusion.csv").open()))
    assert sum(int(cell["count"]) for cell in cells) == 23
    assert "majority" in capsys.readouterr().out
    assert locate(folder).exists()


SAMPLED = ModelConfig(backbone="reference_mlp", neck=16, head=HeadConfig(name="subcenter", min_margin=0.1, sample=0.5))


def test_a_sampled_head_learns_resumes_and_is_evaluated(dataset, tmp_path):
    settings = {"model": SAMPLED, "optimizer": OptimizerConfig(name="adam", lr=0.003)}
    uninterrupted = run_training(config(dataset, tmp_path / "uninterrupted", epochs=8, **settings))
    assert uninterrupted.best["val_top1"] > 0.9
    evaluation = Settings(topk=(1, 2), batch_size=7, by="both", neighbors=3)
    found = evaluate_checkpoint(resolve_checkpoint(uninterrupted.run), dataset, "val", evaluation)
    assert found.summary["top1"] == pytest.approx(uninterrupted.best["val_top1"])
    assert found.summary["loss"] == pytest.approx(uninterrupted.best["val_loss"], abs=1e-3)
    assert found.summary["knn"]["top1"] > 0.9
    run_training(config(dataset, tmp_path / "resumed", epochs=3, **settings))
    run_training(config(dataset, tmp_path / "resumed", epochs=8, resume=True, **settings))
    expected, resumed = weights(tmp_path / "uninterrupted"), weights(tmp_path / "resumed")
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())
    assert expected["5.classifier.weight"].shape == (4, 3, 16)


def test_a_run_with_decoded_images_learns_as_well_and_may_resume_without_them(dataset, tmp_path, capsys):
    loader = LoaderConfig(
        image_size=16,
        batch_size=16,
        decode_threads=2,
        cache=str(tmp_path / "cache"),
        cache_gib=0.1,
        cache_format="yuv420",
    )
    result = run_training(config(dataset, tmp_path, epochs=8, loader=loader, compute=FP32))
    assert result.best["val_top1"] > 0.9
    assert any((tmp_path / "cache").rglob("*-yuv420.arrow"))
    more = config(dataset, tmp_path, epochs=9, resume=True, compute=FP32)
    assert run_training(more).epochs_run == 9
    assert "loader.cache_format: yuv420 -> jpeg" in capsys.readouterr().out


def test_decoded_images_that_do_not_fit_are_one_line(dataset, tmp_path, capsys):
    loader = LoaderConfig(
        image_size=16, batch_size=16, decode_threads=2, cache=str(tmp_path / "c"), cache_gib=2e-4, cache_format="yuv420"
    )
    run_training(config(dataset, tmp_path, epochs=1, loader=loader))
    out = capsys.readouterr().out
    assert out.count("the cache stores JPEGs instead") == 1
    assert not any((tmp_path / "c").rglob("*-yuv420.arrow")) and any((tmp_path / "c").rglob("*-jpeg.arrow"))


def test_an_evaluation_with_a_cache_has_the_same_result(dataset, tmp_path):
    run_training(config(dataset, tmp_path, compute=FP32))
    found = []
    for more in ({}, {"cache": str(tmp_path / "cache"), "cache_gib": 0.1}):
        output = str(tmp_path / f"evaluation-{len(more)}")
        found.append(evaluate(EvaluateConfig(run=str(tmp_path / "train"), output=output, bootstrap=0, **more)))
    assert found[0] == found[1]
    assert len(list((tmp_path / "cache").rglob("*-jpeg.arrow"))) == 3
