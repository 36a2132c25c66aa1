"""Tests the status and the report of studies and runs that have not finished."""

import json
import os
import socket
from pathlib import Path

import pytest

from landmark.cli import main
from landmark.config import TuneConfig, to_yaml
from landmark.search.spaces.space import Space
from landmark.search.state.journal import Journal
from landmark.search.state.state import StudyState
from landmark.search.state.study_lock import FOLDER, machine, started_at
from landmark.storage import locate
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.training.test_run import config

SPACE = """
recipe: {epochs: 3, model: {backbone: reference_mlp}, loader: {image_size: 16}}
parameters: {optimizer.lr: {grid: [0.1, 0.01, 0.001]}}
scheduler: {name: asha}
"""
ROW = {"train_loss": 1.0, "train_top1": 0.5, "val_loss": 1.0, "val_top5": 1.0, "val_macro_recall": 0.5, "lr": 0.1}


def unfinished_study(folder: Path) -> Path:
    """Write a study as a killed driver leaves it: one trial ended, one running, one not started."""
    study = folder / "study"
    study.mkdir()
    (study / "space.yaml").write_text(SPACE)
    space = Space.load(str(study / "space.yaml"))
    tune_config = TuneConfig(dataset="d", space="space.yaml", output=str(folder), name="study", recipe=space.recipe())
    (study / "config.yaml").write_text(to_yaml(tune_config))
    record = StudyState(Journal(locate(study)))
    record.begin(3)
    plans = [space.plan(number, point, tune_config.recipe) for number, point in enumerate(space.points, 1)]
    trials = [record.propose(plan) for plan in plans]
    for trial, epochs, best in ((trials[0], 3, 0.4), (trials[1], 2, 0.6)):
        for epoch in range(1, epochs + 1):
            row = {**ROW, "epoch": epoch, "val_top1": best * epoch / epochs, "epoch_seconds": 1.0, "images_per_s": 10.0}
            record.add(trial, {**row, "reported_at": 100.0 + epoch, "hostname": "h", "pid": 1})
    record.end(trials[0])
    record.flush(final=True)
    return study


def test_status_of_a_killed_study_shows_its_progress(tmp_path, capsys):
    study = unfinished_study(tmp_path)
    assert main(["status", str(study)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith(
        "study: not running; add --resume to continue it; 1/3 trials ended (0 stopped early, 0 failed), 5 of 9 epochs"
    )
    assert any(line.split()[:2] == ["001", "0.1"] and "finished" in line for line in output)
    assert output[-1] == "best so far: 002-0.01 at epoch 2, val_top1 0.6"
    assert main(["status", str(study), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["trials"], values["trials_ended"], values["epochs_run"]) == ("stopped", 3, 1, 5)
    assert values["best"]["trial"] == "002-0.01"


def test_status_of_a_running_study_names_its_process(tmp_path, capsys):
    study = unfinished_study(tmp_path)
    (study / FOLDER).mkdir()
    holder = {"token": "t", "host": socket.gethostname(), "machine": machine(), "pid": os.getpid(), "beat": 0}
    file = study / FOLDER / "00001.json"
    file.write_text(json.dumps(holder | {"started": started_at(os.getpid())}))
    assert main(["status", str(study)]) == 0
    assert f"study: running (process {os.getpid()} on {socket.gethostname()})" in capsys.readouterr().out
    file.write_text(json.dumps(holder | {"started": -1.0}))  # another process has that number now
    assert main(["status", str(study)]) == 0
    assert "not running" in capsys.readouterr().out


def test_an_unfinished_study_has_a_report(tmp_path, capsys):
    study = unfinished_study(tmp_path)
    before = {path.name for path in study.iterdir()}
    assert main(["report", str(study), "-o", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert f"note: {study} has not finished: 5 of 9 epochs" in output
    page = (tmp_path / "out" / "index.html").read_text()
    assert "002-0.01" in page and "001-0.1" in page
    assert {path.name for path in study.iterdir()} == before
    (study / "journal" / "00001.jsonl").write_text("")
    assert main(["report", str(study), "-o", str(tmp_path / "empty")]) == 1
    assert "no trial has finished an epoch yet; try again later" in capsys.readouterr().err


def test_an_unfinished_run_has_a_status_and_a_report(tmp_path, capsys):
    dataset = write_packed(tmp_path / "dataset", {"train": [32], "val": [16], "test": [8]}, classes=4)
    run_training(config(dataset, tmp_path, epochs=2))
    run = tmp_path / "train"
    assert main(["status", str(run)]) == 0
    assert f"{run}: finished, 2 of 2 epochs; newest checkpoint: " in capsys.readouterr().out
    (run / "run.json").unlink()
    assert main(["status", str(run), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["epochs_run"], values["last_epoch"]["epoch"]) == ("not finished", 2, 2)
    assert main(["report", str(run)]) == 0
    assert f"note: {run} has not finished: 2 of 2 epochs" in capsys.readouterr().out
    assert (run / "report" / "index.html").exists()


@pytest.mark.parametrize(
    ("command", "hint"),
    [("status", "give the folder of a study or a run"), ("report", "specify the folder of a complete study or run")],
)
def test_a_missing_folder_is_a_one_line_error(command, hint, tmp_path, capsys):
    assert main([command, str(tmp_path / "none")]) == 1
    assert f"none: does not exist; {hint}" in capsys.readouterr().err
