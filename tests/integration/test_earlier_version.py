"""Tests that a dataset, a run and a study of an earlier version still open, resume and are reported.

earlier_version.tar.xz is the work of commit df0dc6d on synthetic images: `prepare`, `train`, `tune` (ASHA, ended by its budget
of epochs with two of four trials open) and `evaluate`. Its names are those of that version: `deck_mlp`, `margin_least`,
`damaged`, `mix_share`, `neighbours`, `guesses`. Weights are zeros, so that the archive is small.
"""

import json
import tarfile
from pathlib import Path

import pytest

from landmark import load
from landmark.cli import main
from landmark.config import renamed
from landmark.data.loading.bottleneck import current_names
from tests.support.studies import rows

ARCHIVE = Path(__file__).with_name("earlier_version.tar.xz")


@pytest.fixture(scope="module")
def folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(renamed, "_warned", set())


def test_the_dataset_verifies_and_the_stored_evaluation_is_reported(folder, capsys):
    assert main(["prepare", "-o", "dataset", "--verify"]) == 0
    assert main(["report", "run"]) == 0
    assert "no problems" in capsys.readouterr().out
    page = (folder / "run" / "report" / "index.html").read_text()
    assert "k-NN" in page


def test_the_run_predicts_is_evaluated_and_resumes(folder, capsys):
    assert main(["status", "run"]) == 0
    assert "'loader.damaged' is now 'loader.corrupt'" in capsys.readouterr().err
    assert main(["evaluate", "run", "--dataset", "dataset", "--by", "both", "--bootstrap", "0"]) == 0
    metrics = json.loads((folder / "run" / "evaluation-test" / "metrics.json").read_text())
    assert metrics["rows"] == 8 and metrics["knn"]["rows"] == 8
    assert len(load(str(folder / "run")).classes) == 4
    assert main(["train", "dataset", "-o", ".", "--name", "run", "--resume", "--epochs", "3"]) == 0
    assert [row["epoch"] for row in rows(folder / "run" / "history.csv")] == ["1", "2", "3"]


def test_the_study_resumes_with_its_decisions_and_is_reported(folder, capsys):
    assert main(["status", "study"]) == 0
    assert "2/4 trials ended" in capsys.readouterr().out
    before = [current_names(row) for row in rows(folder / "study" / "history.csv")]
    more = ["--resume", "--no-tensorboard", "--max-concurrent", "1", "--budget.epochs", "7", "--test", "none"]
    # The user follows the warnings and uses the new names.
    text = (folder / "study" / "space.yaml").read_text()
    for old, new in (
        ("margin_least", "min_margin"),
        ("deck_mlp", "reference_mlp"),
        ("damaged", "corrupt"),
        ("mix_share", "mix_prob"),
    ):
        text = text.replace(old, new)
    (folder / "renamed.yaml").write_text(text)
    assert main(["tune", "dataset", "--space", "renamed.yaml", "-o", ".", "--name", "study", *more]) == 0
    summary = json.loads((folder / "study" / "study.json").read_text())
    assert summary["epochs_run"] >= 7 and summary["failed"] == 0 and summary["drivers"] == 2
    after = rows(folder / "study" / "history.csv")
    kept = [row for row in after if any(old.items() <= row.items() for old in before)]
    assert all(old.items() <= row.items() for old, row in zip(before, kept, strict=True))
    board = rows(folder / "study" / "leaderboard.csv")
    assert {row["model.backbone"] for row in board} == {"reference_mlp"}
    assert {row["model.head.min_margin"] for row in board} == {"0.05", "0.1"}
    assert main(["report", "study"]) == 0
    assert main(["predict", "study", "dataset", "-o", "predictions"]) == 0
