"""Tests studies: early stopping, pausing, failures, budgets, output files, S3."""

import json
import re

import pyarrow.parquet as pq
import pytest
import torch

from landmark.cli import main
from landmark.commands.evaluate import evaluate
from landmark.commands.report import report
from landmark.commands.tune import tune
from landmark.config import (
    ClusterConfig,
    EvaluateConfig,
    ModelConfig,
    ReportConfig,
    TuneConfig,
    UserError,
    WorkersConfig,
)
from landmark.models import build_model
from landmark.search.spaces.space import Space
from tests.support.packed import write_packed
from tests.support.seaweed import Seaweed
from tests.support.studies import COMMON, LEARNING_RATES, epochs_of, events, rows, study


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("packed")
    return write_packed(folder, {"train": [64, 40], "val": [32], "test": [24]}, classes=4).location.uri


def test_asha_stops_poor_trials_and_the_study_writes_its_files(dataset, tmp_path, capsys):
    scheduler = "scheduler: {name: asha, grace_epochs: 2, reduction_factor: 2}\n"
    summary, folder = study(COMMON + LEARNING_RATES + scheduler, dataset, tmp_path, test="all")
    assert summary["epochs_grid"] == 36
    assert summary["epochs_run"] < 36
    assert summary["stopped_early"] >= 1 and summary["finished"] >= 1 and summary["failed"] == 0
    board = rows(folder / "leaderboard.csv")
    assert len(board) == 6
    assert [row["rank"] for row in board] == [str(rank) for rank in range(1, 7)]
    assert float(board[0]["optimizer.lr"]) >= 0.001
    assert all(row["test_top1"] for row in board if row["checkpoint"])
    history = rows(folder / "history.csv")
    assert len(history) == summary["epochs_run"]
    for row in board:
        assert sum(r["trial"] == row["trial"] for r in history) == int(row["epochs_run"])
    assert json.loads((folder / "study.json").read_text()) == summary
    best = summary["best"]
    metrics = json.loads((folder / "evaluation-test" / "metrics.json").read_text())
    assert metrics["top1"] == best["test"]["1"]
    assert evaluate(EvaluateConfig(run=str(folder)))["top1"] == best["test"]["1"]
    page = report(ReportConfig(run=str(folder)))
    assert best["trial"] in page.read_text()
    assert "stopped early" in capsys.readouterr().out
    reports = len(events(folder, "report"))
    repeated, _ = study(COMMON + LEARNING_RATES + scheduler, dataset, tmp_path, test="all")
    assert (repeated["best"], repeated["epochs_run"]) == (best, summary["epochs_run"])
    assert len(events(folder, "report")) == reports  # nothing is trained or tested again
    with pytest.raises(UserError, match="a study of this name exists, with another recipe, space; choose"):
        study(COMMON.replace("16", "24") + LEARNING_RATES, dataset, tmp_path)


def test_trials_share_the_features_of_a_probe(dataset, tmp_path):
    model = ModelConfig(backbone="reference_mlp")
    torch.save(build_model(model, classes=4, image_size=16).state_dict(), tmp_path / "start.pt")
    text = f"""
metric: val_top1
recipe:
  epochs: 1
  model: {{backbone: reference_mlp, weights: {tmp_path}/start.pt, freeze_backbone: true}}
  probe: {{head: ridge}}
  loader: {{image_size: 16, batch_size: 16, decode_threads: 1}}
parameters:
  probe.l2: {{grid: [10.0, 1.0, 0.1, 0.01, 0.001, 0.0001]}}
"""
    summary, folder = study(text, dataset, tmp_path, max_concurrent=1)
    assert (summary["finished"], summary["failed"]) == (6, 0)
    (key,) = (tmp_path / "features").iterdir()
    stored = {
        split: sum(pq.read_table(part).num_rows for part in (key / split).iterdir()) for split in ("train", "val")
    }
    assert stored == {"train": 104, "val": 32}
    board = rows(folder / "leaderboard.csv")
    losses = {float(row["probe.l2"]): float(row["val_loss"]) for row in board}
    assert len(set(losses.values())) == 6  # each trial fitted its own classifier
    found = evaluate(EvaluateConfig(run=str(folder), split="val"))
    assert found["top1"] == pytest.approx(float(board[0]["val_top1"]))


def test_hyperband_pauses_trials_and_resumes_them_from_checkpoints(dataset, tmp_path):
    scheduler = "scheduler: {name: hyperband, reduction_factor: 3}\n"
    summary, folder = study(COMMON + LEARNING_RATES.replace("[6]", "[9]") + scheduler, dataset, tmp_path, test="none")
    assert summary["epochs_run"] < summary["epochs_grid"] == 54
    for epochs in epochs_of(folder).values():
        assert epochs == list(range(1, len(epochs) + 1))
    assert summary["epochs_repeated"] == 0


def test_median_stopping_stops_a_trial_below_the_median(dataset, tmp_path):
    scheduler = "scheduler: {name: median_stopping, grace_epochs: 2, min_trials: 2}\n"
    text = COMMON + LEARNING_RATES.replace("[6]", "[8]") + scheduler
    summary, _ = study(text, dataset, tmp_path, test="none")
    assert summary["stopped_early"] >= 1
    assert summary["epochs_run"] < summary["epochs_grid"]


def test_a_failing_trial_is_marked_and_the_others_continue(dataset, tmp_path):
    text = COMMON + "parameters:\n  optimizer.lr: {grid: [1.0e+30, 0.003]}\n  epochs: {grid: [2]}\n"
    summary, folder = study(text, dataset, tmp_path)
    assert (summary["failed"], summary["finished"]) == (1, 1)
    board = rows(folder / "leaderboard.csv")
    assert board[-1]["status"] == "failed" and "the loss became" in board[-1]["error"]
    assert board[0]["test_top1"]


def test_when_all_trials_fail_the_first_error_is_reported(dataset, tmp_path):
    text = COMMON + "parameters:\n  optimizer.lr: {grid: [1.0e+30, 2.0e+30]}\n"
    with pytest.raises(UserError, match="all 2 trials that started failed; the first: the loss became"):
        study(text, dataset, tmp_path)
    assert (tmp_path / "study" / "leaderboard.csv").exists()


def test_a_budget_of_epochs_ends_the_study(dataset, tmp_path):
    summary, _ = study(
        COMMON + LEARNING_RATES + "budget: {epochs: 9}\n", dataset, tmp_path, test="none", max_concurrent=1
    )
    assert 9 <= summary["epochs_run"] <= 12
    assert summary["ended_by"] == "its budget of 9 epochs is used up"


def test_insufficient_resources_are_reported_before_anything_starts(dataset, tmp_path):
    text = COMMON + "parameters: {epochs: {grid: [2]}}\n"
    with pytest.raises(UserError, match="not enough resources for a trial: it requires 9 x 1 CPUs"):
        study(text, dataset, tmp_path, workers=WorkersConfig(count=9))
    ray_readers = text.replace("decode_threads: 1}", "decode_threads: 1, stream: ray, reader_cpus: 3}")
    with pytest.raises(UserError, match="for data readers"):
        study(ray_readers, dataset, tmp_path, workers=WorkersConfig(cpus=2), cluster=ClusterConfig())
    assert not (tmp_path / "study" / "config.yaml").exists()


def test_a_study_is_stored_on_s3(dataset, s3: Seaweed, tmp_path):
    text = COMMON + "parameters:\n  optimizer.lr: {grid: [0.003, 0.001]}\n  epochs: {grid: [2]}\n"
    file = tmp_path / "space.yaml"
    file.write_text(text)
    config = TuneConfig(
        dataset=dataset, space=str(file), output=s3.uri("studies"), name="s", recipe=Space.load(str(file)).recipe()
    )
    summary = tune(config)
    assert summary["finished"] == 2
    assert evaluate(EvaluateConfig(run=s3.uri("studies/s")))["top1"] == summary["best"]["test"]["1"]
    assert report(ReportConfig(run=s3.uri("studies/s"))).exists()


def test_a_budget_of_time_stops_the_study_which_resumes_with_more(dataset, tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text(COMMON + LEARNING_RATES)
    command = ["tune", dataset, "--space", str(space), "-o", str(tmp_path), "--name", "study"]
    command += ["--no-tensorboard", "--test", "none", "--max-concurrent", "1"]
    assert main([*command, "--budget.seconds", "1"]) == 75
    # A slow machine completes no epoch in one second.
    message = r"(stopped because its budget of 1 s is used up; .* larger --budget\.seconds|no trial completed an epoch)"
    assert re.search(f"landmark tune: error: .*{message}", capsys.readouterr().err)
    assert json.loads((tmp_path / "study" / "study.json").read_text())["out_of_time"]
    assert main([*command, "--budget.seconds", "600", "--resume"]) == 0
    summary = json.loads((tmp_path / "study" / "study.json").read_text())
    assert not summary["out_of_time"] and summary["finished"] == summary["trials"]
