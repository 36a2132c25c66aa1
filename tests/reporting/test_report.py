"""The report: reference tables, one self-contained page, escaped names, errors for incomplete folders."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from landmark.config import UserError
from landmark.evaluation.io import write_evaluation_files
from landmark.evaluation.summary import accumulate, metrics_of
from landmark.reporting.plots import confusion_png
from landmark.reporting.report import write_report
from landmark.reporting.tables import optimizer_epochs, read_csv
from landmark.storage import locate
from tests.reporting.folders import write_run
from tests.support.predicted import predictions_of

BOARD = """rank,trial,status,model.backbone,optimizer.name,dataset,epochs,epochs_run,best_epoch,val_loss,val_top1,val_top5,\
val_macro_recall,test_top1,test_top5,test_top10,images_per_s,seconds,checkpoint,error
1,t1-<b>,finished,resnet101,adam,,20,20,19,1.5,0.41,0.7,0.3,0.4025,0.6807,0.7944,100,60,ray/t1,
2,t2,stopped early,resnet101,rmsprop,,20,10,10,1.6,0.37,0.6,0.3,0.3526,0.6456,0.7692,100,30,ray/t2,
3,t3,finished,resnet101,rmsprop,,20,20,20,1.6,0.35,0.6,0.3,,,,100,60,ray/t3,
4,t5,finished,resnet101,adam,cleaned,20,20,20,1.6,0.34,0.6,0.3,,,,100,60,ray/t5,
,t4,failed,vgg11,sgd,,10,0,,,,,,,,,,,,no memory
"""
HISTORY = "trial,epoch,val_top1\nt1-<b>,1,0.2\nt1-<b>,2,0.4\nt2,1,0.37\nt3,1,0.35\nt5,1,0.34\n"


def write_study(folder: Path) -> Path:
    study = {
        "name": "study <script>",
        "metric": "val_top1",
        "trials": 4,
        "stopped_early": 1,
        "epochs_run": 50,
        "epochs_grid": 70,
        "dataset": "s3://bucket/small",
        "best": {"trial": "t1", "checkpoint": "ray/t1", "test": {"1": 0.4025}},
        "baselines": {
            "majority": {"1": 0.0473, "5": 0.151, "10": 0.2373},
            "random": {"1": 0.01, "5": 0.05, "10": 0.1},
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study))
    (folder / "leaderboard.csv").write_text(BOARD)
    (folder / "history.csv").write_text(HISTORY)
    return folder


def write_evaluation_of(folder: Path, labels: np.ndarray, logits: np.ndarray, names: list[str]) -> None:
    """Write the evaluation files for these labels and logits."""
    predictions, counts = predictions_of(labels, logits), np.arange(len(names), 0, -1)
    accumulator = accumulate(predictions, len(names), (1, 5))
    summary = metrics_of(predictions, accumulator, "test", counts, samples=20)
    write_evaluation_files(locate(folder), summary, accumulator, predictions, names, counts)


def test_page_of_a_knn_evaluation_shows_no_loss(tmp_path):
    folder = write_run(tmp_path / "run")
    names, random = [f"c{label}" for label in range(6)], np.random.default_rng(0)
    predictions = predictions_of(random.integers(0, 6, 80), random.normal(size=(80, 6)))
    without_loss = dataclasses.replace(predictions, losses=np.full(80, np.nan, np.float32))
    accumulator, counts = accumulate(without_loss, 6, (1, 5)), np.arange(6, 0, -1)
    summary = metrics_of(without_loss, accumulator, "test", counts, samples=20, groups=np.arange(80) // 2)
    assert "loss" not in summary
    write_evaluation_files(locate(folder / "evaluation-test"), summary, accumulator, without_loss, names, counts)
    page = Path(write_report(locate(folder), locate(tmp_path / "report")).path).read_text()
    assert "80 images of 6 classes. Intervals: 20 bootstrap replicates that sample 40 complete groups." in page


class Checker(HTMLParser):
    """Collects the references, ids and tags of a page, and checks that each tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_html(page: str) -> Checker:
    """Check that the page is well formed and refers only to itself."""
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert len(set(checker.ids)) == len(checker.ids)
    assert all(reference.startswith(("data:", "#")) for reference in checker.references)
    assert all(reference[1:] in checker.ids for reference in checker.references if reference.startswith("#"))
    return checker


def test_page_of_a_study_is_well_formed_and_escaped(tmp_path: Path):
    study = write_study(tmp_path / "study")
    write_evaluation_of(study / "evaluation-test", np.array([0, 1, 2]), np.eye(3)[[0, 1, 0]], ["a", "<i>", "$c$ & d"])
    page = (Path(write_report(locate(study), locate(study / "report")).path)).read_text()
    check_html(page)
    assert page.count('<svg role="img"') == 7
    assert "study &lt;script&gt;" in page and "t1-&lt;b&gt;" in page
    assert re.search(r'<tr class="early"><td class="number">2', page)
    assert "no memory" in page
    assert "40.25%" in page and "4.73%" in page


def test_reference_tables_of_a_study(tmp_path: Path):
    study = write_study(tmp_path / "study")
    write_report(locate(study), locate(tmp_path / "out"))
    summary = json.loads((tmp_path / "out" / "model_summary.json").read_text())
    assert [row["model"] for row in summary] == [*["resnet101"] * 4, "(majority baseline)", "(random baseline)"]
    assert [row["test_top1"] for row in summary] == [0.4025, 0.3526, None, None, 0.0473, 0.01]
    table = optimizer_epochs(read_csv(locate(study / "leaderboard.csv")))
    assert table["optimizer/epochs"].tolist() == ["adam/20", "adam/20 cleaned", "rmsprop/10", "rmsprop/20"]
    assert (tmp_path / "out" / "optimizer_epochs.csv").read_text().startswith("model,optimizer/epochs,top1,top5,top10")


def test_integer_fractions_are_written_as_fractions(tmp_path: Path):
    study = write_study(tmp_path / "study")
    board = BOARD.splitlines()
    best = "1,t1,finished,resnet101,adam,,20,20,19,0,1,1,1,1,1,1,100,60,ray/t1,"
    (study / "leaderboard.csv").write_text(f"{board[0]}\n{best}\n")
    (study / "history.csv").write_text("trial,epoch,val_top1\nt1,1,1\n")
    write_report(locate(study), locate(tmp_path / "out"))
    summary = json.loads((tmp_path / "out" / "model_summary.json").read_text())
    assert [row["val_top1"] for row in summary] == [1.0, None, None]


def test_page_of_a_run(tmp_path: Path):
    best = {"epoch": 2, "val_top1": 0.5}
    values = {"name": "r", "dataset": "d", "best": best, "epochs_run": 2, "best_checkpoint": "c"}
    (tmp_path / "run.json").write_text(json.dumps(values))
    (tmp_path / "history.csv").write_text("epoch,train_loss,val_loss,val_top1\n1,2,2,0.3\n2,1,1,0.5\n")
    page = Path(write_report(locate(tmp_path), locate(tmp_path / "report")).path).read_text()
    assert check_html(page).tags.count("svg") == 2


def test_incomplete_folders_are_named_in_errors(tmp_path: Path):
    with pytest.raises(UserError, match="none: does not exist"):
        write_report(locate(tmp_path / "none"), locate(tmp_path / "out"))
    with pytest.raises(UserError, match=r"contains neither study\.json nor run\.json"):
        write_report(locate(tmp_path), locate(tmp_path / "out"))
    study = write_study(tmp_path / "study")
    (study / "history.csv").unlink()
    with pytest.raises(UserError, match=r"history\.csv: file not found"):
        write_report(locate(study), locate(tmp_path / "out"))
    (study / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"study\.json: not valid JSON"):
        write_report(locate(study), locate(tmp_path / "out"))


def test_confusion_plot_of_many_classes(tmp_path: Path):
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(500)]
    write_evaluation_of(tmp_path, rng.integers(0, 500, 2000), rng.random((2000, 500)), names)
    confusion = pa.Table.from_pandas(read_csv(locate(tmp_path / "confusion.csv")))
    assert confusion_png(confusion, names)[:4] == b"\x89PNG"
    assert (tmp_path / "per_class.csv").read_text().count("\n") == 501
