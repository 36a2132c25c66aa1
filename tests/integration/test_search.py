"""Tests studies: PBT, Optuna, several workers per trial, resumed studies, killed processes, loggers."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
from ray.tune.schedulers import FIFOScheduler

from landmark.checkpoints.format import read_recipe, read_weights
from landmark.commands.report import report
from landmark.config import (
    Recipe,
    ReportConfig,
    TrainConfig,
    UserError,
    WorkersConfig,
    from_mapping,
    load_yaml,
    parse_mapping,
)
from tests.support.event_files import read_events
from tests.support.packed import write_packed
from tests.support.studies import COMMON, LEARNING_RATES, epochs_of, events, rows, study

PBT = "scheduler: {name: pbt, interval_epochs: 2, quantile: 0.5, resample: 0.0}\n"
LRS = """
parameters:
  optimizer.lr: {choice: [1.0e-9, 0.002, 0.003]}
  epochs: {grid: [6]}
"""
POPULATION = LRS + "samples: 4\nseed: 3\n"


@pytest.fixture(scope="module")
def dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("packed")
    return write_packed(folder, {"train": [64, 40], "val": [32], "test": [24]}, classes=4).location.uri


def check_exploits(folder: Path, summary: dict) -> None:
    """Check that exploits happened, and that each trial continued from the source's weights with perturbed settings."""
    assert summary["exploits"]
    reports, distinct = events(folder, "report"), 0
    for exploit in summary["exploits"]:
        assert exploit["explored"], "a setting is perturbed when weights are copied"
        after = [
            e["row"] for e in reports if e["trial"] == exploit["trial"] and e["row"]["epoch"] == exploit["epoch"] + 1
        ]
        source = [
            e["row"] for e in reports if e["trial"] == exploit["source"] and e["row"]["epoch"] == exploit["epoch"]
        ]
        own = [e["row"] for e in reports if e["trial"] == exploit["trial"] and e["row"]["epoch"] <= exploit["epoch"]]
        # The weights are the source's: the loss continues from the source's loss, not from the trial's own.
        assert after and source
        # A trial that copied the same source earlier, with equal settings, has equal weights and shows no difference.
        if own[-1]["train_loss"] != source[0]["train_loss"]:
            distinct += 1
            assert abs(after[0]["train_loss"] - source[0]["train_loss"]) < abs(
                after[0]["train_loss"] - own[-1]["train_loss"]
            )
        last = [e for e in summary["exploits"] if e["trial"] == exploit["trial"]][-1]
        kept = folder / "trials" / exploit["trial"] / "checkpoints"
        newest = json.loads((kept / "index.json").read_text())["kept"][0]
        assert read_recipe(kept / newest).optimizer.lr == last["point"]["optimizer.lr"]
    assert distinct


def test_pbt_copies_weights_and_perturbs_settings(dataset, tmp_path):
    summary, folder = study(COMMON + POPULATION + PBT, dataset, tmp_path, test="none", max_concurrent=2)
    assert summary["finished"] == 4 and summary["failed"] == 0
    check_exploits(folder, summary)
    page = report(ReportConfig(run=str(folder))).read_text()
    assert "Exploit steps" in page and summary["exploits"][0]["source"] in page
    starts = [event["row"]["epoch"] for event in events(folder, "report")][:4]
    assert sorted(starts) == [1, 1, 2, 2]  # trials that are behind run first


def test_a_resumed_study_ends_like_an_uninterrupted_one(dataset, tmp_path):
    text = COMMON + LEARNING_RATES + "scheduler: {name: hyperband, brackets: 1}\n"
    (tmp_path / "uninterrupted").mkdir()
    uninterrupted, _ = study(text, dataset, tmp_path / "uninterrupted", test="none", max_concurrent=1)
    first, folder = study(text + "budget: {epochs: 9}\n", dataset, tmp_path, test="none", max_concurrent=1)
    assert first["epochs_run"] >= 9 and first["ended_by"]
    done, folder = study(text, dataset, tmp_path, test="none", max_concurrent=1)
    assert done["epochs_repeated"] == 0 and done["drivers"] == 2
    assert done["epochs_run"] == uninterrupted["epochs_run"]
    assert epochs_of(folder) == epochs_of(tmp_path / "uninterrupted" / "study")
    assert done["best"]["val_top1"] == uninterrupted["best"]["val_top1"]


def test_optuna_suggestions_use_results_and_continue_after_a_stop(dataset, tmp_path):
    text = COMMON + (
        "parameters:\n  optimizer.name: {choice: [sgd, adam]}\n"
        "  optimizer.lr: {by: optimizer.name, sgd: {loguniform: [0.001, 0.3]}, adam: {loguniform: [1.0e-5, 1.0e-2]}}\n"
        "samples: 8\nsearcher: {name: optuna, startup: 3, objectives: [val_top1, images_per_s]}\n"
    )
    text = text.replace("loader:", "epochs: 1\n  loader:")
    first, folder = study(text + "budget: {epochs: 4}\n", dataset, tmp_path, test="none", max_concurrent=1)
    assert first["epochs_run"] == 4
    summary, _ = study(text, dataset, tmp_path, test="none", max_concurrent=2)
    assert (summary["finished"], summary["searcher"], summary["epochs_run"]) == (8, "optuna", 8)
    board = rows(folder / "leaderboard.csv")
    assert len({(row["optimizer.name"], row["optimizer.lr"]) for row in board}) == 8
    front = [row for row in board if row["pareto"] == "True"]
    best_speed = max(board, key=lambda row: float(row["images_per_s"]))
    assert board[0] in front or float(board[0]["val_top1"]) in [float(row["val_top1"]) for row in front]
    assert 1 <= len(front) <= 8 and float(best_speed["images_per_s"]) > 0


def test_a_study_with_classes_by_import_path_resumes_and_compares_its_journal(dataset, tmp_path):
    text = COMMON + (
        "parameters:\n  optimizer.lr: {loguniform: [1.0e-9, 0.01]}\n  epochs: {grid: [3]}\nsamples: 6\n"
        "searcher: {name: 'ray.tune.search.optuna:OptunaSearch', options: {seed: 0}}\n"
        "scheduler: {name: 'ray.tune.schedulers:AsyncHyperBandScheduler', options: {reduction_factor: 2, brackets: 2}}\n"
    )
    first, folder = study(text + "budget: {epochs: 5}\n", dataset, tmp_path, test="none")
    assert first["ended_by"] and first["epochs_run"] < 18
    summary, _ = study(text, dataset, tmp_path, test="none")
    assert (summary["drivers"], summary["finished"] + summary["stopped_early"], summary["failed"]) == (2, 6, 0)
    assert summary["scheduler"] == "ray.tune.schedulers:AsyncHyperBandScheduler"
    file = folder / "journal" / "00001.jsonl"
    lines = file.read_text().splitlines()
    number, line = next((n, line) for n, line in enumerate(lines, 1) if '"decision": "continue"' in line)
    lines[number - 1] = line.replace('"decision": "continue"', '"decision": "stop"')
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"00001.jsonl: line {number}: the journal has the decision 'stop' about "):
        study(text, dataset, tmp_path, test="none")


class Broken(FIFOScheduler):
    """Decides through a method that only Ray Tune's own controller has."""

    def on_trial_result(self, tune_controller, trial, result):
        return tune_controller._schedule_trial_save(trial)


def test_an_error_in_a_scheduler_is_one_line(dataset, tmp_path):
    text = COMMON + LEARNING_RATES + f"scheduler: {{name: '{__name__}:Broken'}}\n"
    message = r"scheduler .*:Broken, on_trial_result of 001-\S+ at epoch 1: .*no tune_controller._schedule_trial_save"
    with pytest.raises(UserError, match=message) as error:
        study(text, dataset, tmp_path, test="none", max_concurrent=1)
    assert "\n" not in str(error.value)


def test_a_target_ends_the_study(dataset, tmp_path):
    summary, _ = study(
        COMMON + LEARNING_RATES + "budget: {target: 0.3}\n", dataset, tmp_path, test="none", max_concurrent=1
    )
    assert summary["ended_by"] == "a trial reached its target, val_top1 0.3"
    assert summary["epochs_run"] < summary["epochs_grid"]


def test_trials_share_one_cache_of_decoded_images(dataset, tmp_path):
    text = COMMON + "parameters:\n  optimizer.lr: {grid: [0.003, 0.001]}\n  epochs: {grid: [1]}\n"

    def with_cache(gib: float) -> Recipe:
        recipe = from_mapping(Recipe, parse_mapping(COMMON, "space")["recipe"], "space")
        options = {"cache": str(tmp_path / "cache"), "cache_gib": gib, "cache_format": "yuv420"}
        return dataclasses.replace(recipe, loader=dataclasses.replace(recipe.loader, **options))

    summary, _ = study(text, dataset, tmp_path, recipe=with_cache(0.1))
    assert summary["finished"] == 2 and summary["best"]["test"]["1"] > 0
    # 13 row groups of training, 4 of validation, and 3 of the test split as JPEGs. No trial has entries of its own.
    names = [path.stem.partition("-")[2].partition("-")[2] for path in (tmp_path / "cache").rglob("*.arrow")]
    assert sorted(names) == ["jpeg"] * 3 + ["yuv420"] * 17
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    # The cache may change when the study resumes.
    again, _ = study(text, dataset, tmp_path, recipe=with_cache(0.2))
    assert again["finished"] == 2


def test_the_best_recipe_is_retrained_and_exported(dataset, tmp_path):
    text = COMMON + LEARNING_RATES + "scheduler: {name: asha, reduction_factor: 2}\nbudget: {epochs: 8}\n"
    summary, folder = study(text, dataset, tmp_path, best="retrained")
    assert summary["best"]["checkpoint"] == "best"
    run = load_yaml(TrainConfig, folder / "retrained" / summary["best"]["trial"] / "config.yaml")
    assert run.optimizer.lr == summary["best"]["parameters"]["optimizer.lr"]
    history = rows(folder / "retrained" / summary["best"]["trial"] / "history.csv")
    assert len(history) == 6  # to the last epoch, even if the scheduler stopped the trial early
    exported, trained = read_weights(folder / "best"), read_weights(Path(summary["best"]["trained_at"]))
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert summary["best"]["test"]["1"] > 0 and (folder / "evaluation-test" / "metrics.json").exists()


def test_a_killed_trial_process_is_replaced_and_its_trial_resumes(dataset, tmp_path):
    text = COMMON + "parameters:\n  optimizer.lr: {grid: [0.003]}\n  epochs: {grid: [30]}\n"
    killed = []

    def kill() -> None:
        while not killed:
            time.sleep(0.05)
            if (tmp_path / "study" / "journal").exists() and (found := events(tmp_path / "study", "report")):
                killed.append(int(found[-1]["process"].split(":")[-1]))
                os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    summary, folder = study(text, dataset, tmp_path, test="none")
    thread.join(timeout=1)
    assert killed and summary["finished"] == 1
    assert list(epochs_of(folder).values()) == [list(range(1, 31))]
    assert summary["epochs_repeated"] == 0
    assert len({event["process"] for event in events(folder, "report")}) == 2


# Two processes per trial that read with threads, so that fewer processes start.
NESTED = COMMON.replace("decode_threads: 1", "decode_threads: 1, stream: thread")


def test_trials_of_two_workers_pause_stop_and_resume(dataset, tmp_path):
    text = NESTED + "parameters:\n  optimizer.lr: {grid: [1.0e-9, 0.003]}\n  epochs: {grid: [2]}\n"
    halving = "scheduler: {name: hyperband, reduction_factor: 2, brackets: 1}\n"
    summary, folder = study(text + halving, dataset, tmp_path, workers=WorkersConfig(count=2))
    assert (summary["finished"], summary["stopped_early"], summary["failed"]) == (1, 1, 0)
    assert sorted(map(len, epochs_of(folder).values())) == [1, 2]
    assert summary["best"]["parameters"]["optimizer.lr"] == 0.003 and summary["best"]["test"]["1"] > 0
    for row in rows(folder / "leaderboard.csv"):
        assert (folder / row["checkpoint"] / "model.safetensors").exists()


def test_pbt_copies_weights_between_trials_of_two_workers(dataset, tmp_path):
    text = NESTED + LRS.replace("[6]", "[2]") + "samples: 2\nseed: 6\n" + PBT.replace("epochs: 2", "epochs: 1")
    workers = WorkersConfig(count=2)
    summary, folder = study(text, dataset, tmp_path, test="none", workers=workers, max_concurrent=1)
    assert summary["finished"] == 2
    check_exploits(folder, summary)


@pytest.fixture
def command(dataset: str, tmp_path: Path) -> list[str]:
    """Return the command of a study whose driver starts its own Ray."""
    file = tmp_path / "space.yaml"
    file.write_text(
        COMMON
        + LEARNING_RATES.replace("[6]", "[24]")
        + "scheduler: {name: asha, grace_epochs: 4, reduction_factor: 2}\n"
    )
    options = ["--dataset", dataset, "--output", str(tmp_path), "--name", "study"]
    return [
        sys.executable,
        "-m",
        "landmark",
        "tune",
        "--resume",
        "--space",
        str(file),
        *options,
        "--cluster.cpus",
        "2",
        "--test",
        "none",
    ]


def test_a_study_resumes_after_its_driver_is_killed(command, tmp_path):
    folder = tmp_path / "study"
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(events(folder, "report")) < 15:
        assert driver.poll() is None and time.monotonic() < deadline, driver.stderr.read()
        time.sleep(0.1)
    # Ray's agents run for more than 30 s after the driver was killed, but they do not train.
    processes = [p for p in psutil.Process(driver.pid).children(recursive=True) if "Agent" not in p.name()]
    driver.kill()
    driver.wait()
    psutil.wait_procs(processes, timeout=30)
    ended = {event["trial"] for event in events(folder, "ended")}
    reports = len(events(folder, "report"))
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "resuming after" in again.stderr
    summary = json.loads((folder / "study.json").read_text())
    assert (summary["drivers"], summary["finished"] + summary["stopped_early"], summary["failed"]) == (2, 6, 0)
    assert summary["epochs_repeated"] == 0
    for epochs in epochs_of(folder).values():
        assert epochs == list(range(1, len(epochs) + 1))
    assert not ended & {event["trial"] for event in events(folder, "report")[reports:]}


TOP1_TAG = "ray/tune/val_top1"


def test_loggers_write_each_epoch_under_its_trial(dataset, tmp_path):
    text = COMMON + "parameters:\n  optimizer.lr: {grid: [0.003, 0.001]}\n  epochs: {grid: [2]}\n"
    study(text, dataset, tmp_path, test="none", tensorboard=True, mlflow=str(tmp_path / "tracked"))
    files = list((tmp_path / "study").glob("ray-001/*/events.out.tfevents.*"))
    tags = [[event.step for event in read_events(file) if event.summary.value[0].tag == TOP1_TAG] for file in files]
    assert tags == [[1, 2], [1, 2]]
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/tracked/mlflow.db")
    runs = mlflow.search_runs(experiment_names=["study"])
    assert len(runs) == 2 and (runs["metrics.val_top1"] > 0).all() and set(runs["status"]) == {"FINISHED"}


def test_a_missing_logger_package_is_named(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--wandb: the package wandb is not installed; pip install '(wandb|\.\[wandb\])"
    ):
        study(COMMON + LEARNING_RATES, dataset, tmp_path, wandb="project")


def test_dry_run_starts_nothing(dataset, tmp_path, capsys):
    study(COMMON + LEARNING_RATES, dataset, tmp_path, dry_run=True)
    output = capsys.readouterr().out
    assert "003" in output and "36" in output
    assert not (tmp_path / "study").exists()
