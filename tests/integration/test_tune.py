"""Studies for real: early stopping, pausing, failures, several workers, the files that are left, S3."""

import json

import pytest

from landmark.commands.evaluate import evaluate
from landmark.commands.report import report
from landmark.commands.tune import tune
from landmark.config import ClusterConfig, EvaluateConfig, ReportConfig, TuneConfig, UserError, WorkersConfig
from landmark.search.spaces.space import Space
from tests.support.packed import write_packed
from tests.support.seaweed import Seaweed
from tests.support.studies import COMMON, RATES, epochs_of, events, rows, study


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("packed")
    return write_packed(folder, {"train": [64, 40], "val": [32], "test": [24]}, classes=4).location.uri


def test_asha_stops_poor_trials_and_the_study_leaves_its_files(dataset, tmp_path, capsys):
    scheduler = "scheduler: {name: asha, grace_epochs: 2, reduction_factor: 2}\n"
    summary, folder = study(COMMON + RATES + scheduler, dataset, tmp_path, test="all")
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
    again, _ = study(COMMON + RATES + scheduler, dataset, tmp_path, test="all")
    assert (again["best"], again["epochs_run"]) == (best, summary["epochs_run"])
    assert len(events(folder, "report")) == reports  # nothing is run, and nothing is tested, again
    with pytest.raises(UserError, match="a study of this name exists, with another recipe, space; choose"):
        study(COMMON.replace("16", "24") + RATES, dataset, tmp_path)


def test_hyperband_pauses_trials_and_they_go_on_from_their_checkpoint(dataset, tmp_path):
    scheduler = "scheduler: {name: hyperband, reduction_factor: 3}\n"
    summary, folder = study(COMMON + RATES.replace("[6]", "[9]") + scheduler, dataset, tmp_path, test="none")
    assert summary["epochs_run"] < summary["epochs_grid"] == 54
    for epochs in epochs_of(folder).values():
        assert epochs == list(range(1, len(epochs) + 1))
    assert summary["epochs_repeated"] == 0


def test_median_stopping_ends_a_trial_below_the_others(dataset, tmp_path):
    scheduler = "scheduler: {name: median_stopping, grace_epochs: 2, min_trials: 2}\n"
    text = COMMON + RATES.replace("[6]", "[8]") + scheduler
    summary, _ = study(text, dataset, tmp_path, test="none")
    assert summary["stopped_early"] >= 1
    assert summary["epochs_run"] < summary["epochs_grid"]


def test_a_failing_trial_is_marked_and_the_rest_goes_on(dataset, tmp_path):
    text = COMMON + "parameters:\n  optimizer.lr: {grid: [1.0e+30, 0.003]}\n  epochs: {grid: [2]}\n"
    summary, folder = study(text, dataset, tmp_path)
    assert (summary["failed"], summary["finished"]) == (1, 1)
    board = rows(folder / "leaderboard.csv")
    assert board[-1]["status"] == "failed" and "the loss became" in board[-1]["error"]
    assert board[0]["test_top1"]


def test_when_all_fail_the_first_reason_is_told(dataset, tmp_path):
    text = COMMON + "parameters:\n  optimizer.lr: {grid: [1.0e+30, 2.0e+30]}\n"
    with pytest.raises(UserError, match="all 2 trials that started failed; the first: the loss became"):
        study(text, dataset, tmp_path)
    assert (tmp_path / "study" / "leaderboard.csv").exists()


def test_a_budget_of_epochs_ends_the_study(dataset, tmp_path):
    summary, _ = study(COMMON + RATES + "budget: {epochs: 9}\n", dataset, tmp_path, test="none", max_concurrent=1)
    assert 9 <= summary["epochs_run"] <= 12
    assert summary["ended_by"] == "its budget of 9 epochs is used up"


def test_no_room_is_said_before_anything_starts(dataset, tmp_path):
    text = COMMON + "parameters: {epochs: {grid: [2]}}\n"
    with pytest.raises(UserError, match="not enough resources for a trial: it requires 9 x 1 CPUs"):
        study(text, dataset, tmp_path, workers=WorkersConfig(count=9))
    ray_readers = text.replace("decode_threads: 1}", "decode_threads: 1, stream: ray, reader_cpus: 3}")
    with pytest.raises(UserError, match="for data readers"):
        study(ray_readers, dataset, tmp_path, workers=WorkersConfig(cpus=2), cluster=ClusterConfig())
    assert not (tmp_path / "study" / "config.yaml").exists()


def test_a_study_lives_on_s3(dataset, s3: Seaweed, tmp_path):
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
