"""The reference summary next to a study's metrics, for studies with any subset of its models."""

from pathlib import Path

import pandas as pd
import pytest

from landmark.cli import main
from landmark.config import UserError
from landmark.reporting.study.reference_study import ROWS, reference_summary
from tests.reporting.studies import study_of, write_study

TRIALS = [
    {"model.backbone": "resnet101", "optimizer.name": "adam", "epochs": 20, "val_top1": 0.5, "test_top1": 0.48},
    {"model.backbone": "resnet101", "optimizer.name": "adam", "epochs": 20, "val_top1": 0.4, "test_top1": 0.99},
    {"model.backbone": "resnet101", "optimizer.name": "adam", "epochs": 20, "dataset": "cleaned", "val_top1": 0.6},
    {"model.backbone": "resnet50", "optimizer.name": "sgd", "epochs": 10, "dataset": "large", "val_top1": 0.2},
    {"model.backbone": "vgg11", "optimizer.name": "sgd", "epochs": 10, "val_top1": 0.9},
]
TRIALS = [{"trial": f"t{n}", "status": "finished", **trial} for n, trial in enumerate(TRIALS)]


def test_trials_of_a_study_are_shown_next_to_the_reference_rows(tmp_path: Path):
    baselines = {"majority": {"1": 0.05, "5": 0.2, "10": 0.3}, "random": {"1": 0.01, "5": 0.05, "10": 0.1}}
    table = reference_summary(study_of(tmp_path, TRIALS, {}, baselines=baselines)).set_index(
        ["model", "optimizer", "epochs", "data"]
    )
    assert len(table) == len(ROWS) + 2
    small = table.loc[("resnet101", "adam", 20, "small")]
    # The better trial by validation, although the other one has the higher test accuracy. Never select by test metrics.
    assert (small["trial"], small["study_test_top1"], small["reference_test_top1"]) == ("t0", 0.48, 0.4025)
    assert table.loc[("resnet101", "adam", 20, "cleaned")]["trial"] == "t2"
    assert table.loc[("resnet50", "sgd", 10, "large")]["study_val_top1"] == 0.2
    assert pd.isna(table.loc[("resnet50", "sgd", 10, "small")]["trial"])
    majority = table[table.index.get_level_values(0) == "(majority baseline)"].iloc[0]
    assert (majority["reference_test_top1"], majority["study_test_top1"]) == (0.0473, 0.05)


def test_command_prints_and_writes_the_summary(tmp_path: Path, capsys):
    study = write_study(tmp_path / "s", TRIALS[:1], {"t0": [0.5]})
    assert main(["report", "--reference", str(study)]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "resnet101" in line and "adam" in line)
    assert line.split() == [
        "resnet101",
        "adam",
        "20",
        "small",
        *["38.30%", "50.00%", "40.25%", "48.00%", "68.07%", "-", "79.44%", "-"],
    ]
    assert "This study contains 1 of the reference study's 12 models." in out
    assert len(pd.read_csv(study / "report" / "reference_summary.csv")) == 14


def test_study_without_matching_trials_raises_a_one_line_error(tmp_path: Path, capsys):
    with pytest.raises(UserError, match="no trial matches the reference study's twelve models"):
        reference_summary(study_of(tmp_path / "s", TRIALS[4:], {}))
    assert main(["report", "--reference", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.strip().endswith("none: does not exist; specify the folder of a complete study")
    assert main(["report"]) == 2
    assert "expected --run FOLDER or --reference STUDY" in capsys.readouterr().err
    assert main(["report", "--run", "a", "--reference", "b"]) == 2
