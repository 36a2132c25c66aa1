"""The study's page: what it draws of studies of any size and luck, its words, its tables, files that are amiss."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from landmark.config import UserError
from landmark.reporting.report import write_report
from landmark.storage import locate
from tests.reporting.studies import write_study
from tests.reporting.test_report import checked

KEYS = ["model.backbone", "optimizer.lr", "epochs"]
PICTURES = ("Learning curves", "Epochs spent against the best so far", "Settings and what they led to")


def drawn_study(folder: Path, trials: int, **summary) -> Path:
    """A study of seeded trials: about half finish, the others stop after one epoch, each seventh fails."""
    rng = np.random.default_rng(trials)
    rows, history = [], {}
    for number in range(trials):
        rate, name = 10 ** rng.uniform(-4, -1), f"{number:03d}-$x$_<i>"
        status = "failed" if number % 7 == 6 else "finished" if number % 2 == 0 else "stopped early"
        top1 = 0.5 - 0.1 * (np.log10(rate) + 2) ** 2 + rng.normal(0, 0.02)
        history[name] = [] if status == "failed" else [top1 * e / 4 for e in range(1, 5 if status == "finished" else 2)]
        best = history[name][-1] if history[name] else None
        rows.append(
            {
                "trial": name,
                "status": status,
                "val_top1": best,
                "model.backbone": f"net{number % 3}",
                "optimizer.lr": rate,
                "images_per_s": 100 + number,
                "parameters": 1_000_000 * (1 + number % 3),
                "error": "no memory" if status == "failed" else None,
            }
        )
    rows.sort(key=lambda row: (row["status"] == "failed", -(row["val_top1"] or 0)))
    return write_study(folder, rows, history, **{"parameters": KEYS, "epochs_grid": 4 * trials, **summary})


def page_of(study: Path, output: Path) -> tuple[str, dict[str, str]]:
    """Write the report; returns the page, and its charts (SVG) by the heading above them."""
    page = Path(write_report(locate(str(study)), locate(str(output))).path).read_text()
    checked(page)
    pictures = {}
    for part in re.split('<h3 id="[^"]*">', page)[1:]:
        for chart in re.findall(r'<svg role="img" aria-label=.*?</svg>', part, re.DOTALL):
            pictures[part.split("</h3>")[0]] = chart
    return page, pictures


def marks(chart: str) -> int:
    """Return how many lines, areas and markers a chart draws, texts apart."""
    return len(re.findall(r"<(?:path|use|image) ", chart))


@pytest.mark.parametrize("trials", [2, 30, 200])
def test_studies_of_any_size_are_drawn(tmp_path, trials):
    page, pictures = page_of(drawn_study(tmp_path / "study", trials), tmp_path / "out")
    # Of two trials one is stopped early, and one alone shows no effect.
    assert list(pictures) == [*PICTURES, *(["The effect of each setting"] if trials > 2 else [])]
    assert ("These trials have the same searched settings." in page) is (trials == 2)
    for picture in pictures.values():
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture).groups())
        assert 480 <= width <= 792 and 144 <= height <= 960
        assert marks(picture) >= 20 and "<text" in picture
    assert len(page) < 3_000_000


def test_the_pages_words_say_what_the_pictures_show(tmp_path):
    page, _ = page_of(drawn_study(tmp_path / "study", 30), tmp_path / "out")
    board = pd.read_csv(tmp_path / "study" / "leaderboard.csv")
    counts = board["status"].value_counts()
    assert f"for 26 trials: {counts['finished']} finished, {counts['stopped early']} stopped early." in page
    assert "4 reported no metric" in page
    run = len(pd.read_csv(tmp_path / "study" / "history.csv"))
    assert f"{run} epochs were trained, {run / 120:.0%} of the 120 epochs of the full grid" in page
    assert f"Based on the {counts['finished']} trials" in page
    table = pd.read_csv(tmp_path / "out" / "importance.csv")
    assert set(table["parameter"]) == {"model.backbone", "optimizer.lr"}
    assert table["parameter"].iloc[0] == "optimizer.lr" and table["explained"].iloc[0] > 0.6
    assert page.count('<tr class="early">') == counts["stopped early"]
    assert all(len(alt) > 40 for alt in re.findall(r'<svg role="img" aria-label="([^"]*)"', page))


def test_old_studies_that_do_not_say_what_they_searched_are_read(tmp_path):
    study = drawn_study(tmp_path / "study", 12)
    values = json.loads((study / "study.json").read_text())
    for key in ("parameters", "epochs_grid"):
        del values[key]
    (study / "study.json").write_text(json.dumps(values))
    page, pictures = page_of(study, tmp_path / "out")
    assert list(pictures) == [*PICTURES, "The effect of each setting"]
    assert "over model.backbone, optimizer.lr and validation top-1" in page
    assert "full grid" not in page


def test_a_study_without_a_varied_parameter_says_so(tmp_path):
    study = drawn_study(tmp_path / "study", 4, parameters=["epochs", "optimizer.name"])
    page, pictures = page_of(study, tmp_path / "out")
    assert list(pictures) == list(PICTURES[:2])
    assert "the same searched settings" in page


@pytest.mark.parametrize("history", [{}, {"a": [None, None], "b": [None]}])
def test_a_study_whose_trials_all_failed_still_has_its_page(tmp_path, history):
    rows = [{"trial": name, "status": "failed", "val_top1": None, "error": "loss is nan"} for name in "ab"]
    page, pictures = page_of(write_study(tmp_path / "study", rows, history, failed=2), tmp_path / "out")
    assert not pictures
    assert "No trial reported a metric" in page and page.count("loss is nan") == 2


def test_metrics_that_are_not_numbers_do_not_hide_the_others(tmp_path):
    rows = [
        {"trial": "a", "status": "finished", "val_top1": 0.5, "optimizer.lr": 0.1},
        {"trial": "b", "status": "finished", "val_top1": 0.4, "optimizer.lr": 0.2},
        {"trial": "c", "status": "stopped early", "val_top1": float("inf"), "optimizer.lr": 0.3},
        {"trial": "d", "status": "not started", "val_top1": None, "optimizer.lr": 0.4},
    ]
    history = {"a": [0.3, float("nan"), 0.5], "b": [0.4, float("inf")], "c": [float("inf")]}
    study = write_study(tmp_path / "study", rows, history, parameters=["optimizer.lr"])
    page, pictures = page_of(study, tmp_path / "out")
    assert list(pictures) == [*PICTURES, "The effect of each setting"]
    assert "for 2 trials: 2 finished." in page and "2 reported no metric" in page


def test_several_objectives_have_their_front(tmp_path):
    objectives = ["val_top1", "images_per_s", "parameters"]
    study = drawn_study(tmp_path / "study", 30, objectives=objectives)
    board = pd.read_csv(study / "leaderboard.csv")
    board["pareto"] = [
        None if status == "failed" else rank in (1, 4)
        for status, rank in zip(board["status"], board["rank"], strict=True)
    ]
    board.to_csv(study / "leaderboard.csv", index=False)
    page, pictures = page_of(study, tmp_path / "out")
    title = "Validation top-1 against training images/s and model parameters"
    assert marks(pictures[title]) > 30
    assert "2 of 26 trials are on the Pareto front" in page
    section = page.split(f">{title}</h3>")[1].split("<h3")[0]
    assert section.count("<tr>") == 3 and re.search(r"[123],000,000", section)


def test_exploits_of_population_based_training_are_told_and_drawn(tmp_path):
    exploits = [
        {"trial": "002-$x$_<i>", "source": "000-$x$_<i>", "epoch": 2, "changed": {"optimizer.lr": [0.1, 0.08]}},
        {"trial": "004-$x$_<i>", "source": "000-$x$_<i>", "epoch": 1, "changed": {"optimizer.name": ["sgd", "adam"]}},
    ]
    study = drawn_study(tmp_path / "study", 6, exploits=exploits, best={"trial": "000-$x$_<i>"})
    page, pictures = page_of(study, tmp_path / "out")
    assert "Settings that changed while trials ran" in pictures
    assert "2 times, a trial continued" in page and "optimizer.lr 0.1 → 0.08" in page
    assert pd.read_csv(tmp_path / "out" / "exploits.csv")["epoch"].tolist() == [1, 2]


def test_losses_that_span_far_are_drawn(tmp_path):
    rows = [
        {"trial": f"t{n}", "status": "finished", "val_loss": loss, "optimizer.lr": 0.1 * (n + 1)}
        for n, loss in enumerate([0.5, 0.7, 2.0, 9.0, 4000.0])
    ]
    history = {row["trial"]: [2 * row["val_loss"], row["val_loss"]] for row in rows}
    study = write_study(tmp_path / "study", rows, history, metric="val_loss", mode="min", parameters=["optimizer.lr"])
    page, pictures = page_of(study, tmp_path / "out")
    assert list(pictures) == [*PICTURES, "The effect of each setting"]
    assert "The best, 0.5, was found after" in page


def test_files_that_lack_what_the_page_needs_are_named(tmp_path):
    study = drawn_study(tmp_path / "study", 4)
    board = pd.read_csv(study / "leaderboard.csv")
    board.drop(columns="val_top1").to_csv(study / "leaderboard.csv", index=False)
    with pytest.raises(UserError, match=r"leaderboard\.csv: missing column val_top1; run the study again"):
        write_report(locate(str(study)), locate(str(tmp_path / "out")))
    (study / "study.json").write_text('{"name": "s"}')
    with pytest.raises(UserError, match=r"study\.json: missing metric, dataset, trials"):
        write_report(locate(str(study)), locate(str(tmp_path / "out")))
