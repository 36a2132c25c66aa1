"""The page of a study: charts, texts and tables for studies of any size, failed trials, invalid files."""

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
from tests.reporting.test_report import check_html

KEYS = ["model.backbone", "optimizer.lr", "epochs"]
CHARTS = ("Learning curves", "Search progress", "Parallel coordinates")


def random_study(folder: Path, trials: int, **summary) -> Path:
    """Write a study with random metrics: half of the trials finish, others stop after one epoch, each seventh fails."""
    rng = np.random.default_rng(trials)
    rows, history = [], {}
    for number in range(trials):
        learning_rate, name = 10 ** rng.uniform(-4, -1), f"{number:03d}-$x$_<i>"
        status = "failed" if number % 7 == 6 else "finished" if number % 2 == 0 else "stopped early"
        top1 = 0.5 - 0.1 * (np.log10(learning_rate) + 2) ** 2 + rng.normal(0, 0.02)
        history[name] = [] if status == "failed" else [top1 * e / 4 for e in range(1, 5 if status == "finished" else 2)]
        best = history[name][-1] if history[name] else None
        rows.append(
            {
                "trial": name,
                "status": status,
                "val_top1": best,
                "model.backbone": f"net{number % 3}",
                "optimizer.lr": learning_rate,
                "images_per_s": 100 + number,
                "parameters": 1_000_000 * (1 + number % 3),
                "error": "no memory" if status == "failed" else None,
            }
        )
    rows.sort(key=lambda row: (row["status"] == "failed", -(row["val_top1"] or 0)))
    return write_study(folder, rows, history, **{"parameters": KEYS, "epochs_grid": 4 * trials, **summary})


def write_page(study: Path, output: Path) -> tuple[str, dict[str, str]]:
    """Write the report. Returns the page, and its charts (SVG) by section title."""
    page = Path(write_report(locate(str(study)), locate(str(output))).path).read_text()
    check_html(page)
    charts = {}
    for section in re.split('<h3 id="[^"]*">', page)[1:]:
        for chart in re.findall(r'<svg role="img" aria-label=.*?</svg>', section, re.DOTALL):
            charts[section.split("</h3>")[0]] = chart
    return page, charts


def mark_count(chart: str) -> int:
    """Return the number of lines, areas and markers of a chart, without texts."""
    return len(re.findall(r"<(?:path|use|image) ", chart))


@pytest.mark.parametrize("trials", [2, 30, 200])
def test_charts_of_studies_of_any_size(tmp_path, trials):
    page, charts = write_page(random_study(tmp_path / "study", trials), tmp_path / "out")
    # One of two trials is stopped early. A single trial shows no effect.
    assert list(charts) == [*CHARTS, *(["Hyperparameter effects"] if trials > 2 else [])]
    assert ("These trials have the same hyperparameters." in page) is (trials == 2)
    for chart in charts.values():
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart).groups())
        assert 480 <= width <= 792 and 144 <= height <= 960
        assert mark_count(chart) >= 20 and "<text" in chart
    assert len(page) < 3_000_000


def test_texts_match_the_charts(tmp_path):
    page, _ = write_page(random_study(tmp_path / "study", 30), tmp_path / "out")
    board = pd.read_csv(tmp_path / "study" / "leaderboard.csv")
    counts = board["status"].value_counts()
    assert f"for 26 trials: {counts['finished']} finished, {counts['stopped early']} stopped early." in page
    assert "Trials without a reported metric: 4." in page
    epochs = len(pd.read_csv(tmp_path / "study" / "history.csv"))
    assert f"The trials ran {epochs} epochs, {epochs / 120:.0%} of the 120 epochs of the full grid" in page
    assert f"Based on the {counts['finished']} trials" in page
    table = pd.read_csv(tmp_path / "out" / "importance.csv")
    assert set(table["parameter"]) == {"model.backbone", "optimizer.lr"}
    assert table["parameter"].iloc[0] == "optimizer.lr" and table["explained"].iloc[0] > 0.6
    assert page.count('<tr class="early">') == counts["stopped early"]
    assert all(len(alt) > 40 for alt in re.findall(r'<svg role="img" aria-label="([^"]*)"', page))


def test_study_without_recorded_search_keys(tmp_path):
    study = random_study(tmp_path / "study", 12)
    values = json.loads((study / "study.json").read_text())
    for key in ("parameters", "epochs_grid"):
        del values[key]
    (study / "study.json").write_text(json.dumps(values))
    page, charts = write_page(study, tmp_path / "out")
    assert list(charts) == [*CHARTS, "Hyperparameter effects"]
    assert "over model.backbone, optimizer.lr and validation top-1" in page
    assert "full grid" not in page


def test_study_with_identical_hyperparameters(tmp_path):
    study = random_study(tmp_path / "study", 4, parameters=["epochs", "optimizer.name"])
    page, charts = write_page(study, tmp_path / "out")
    assert list(charts) == list(CHARTS[:2])
    assert "the same hyperparameters" in page


@pytest.mark.parametrize("history", [{}, {"a": [None, None], "b": [None]}])
def test_page_of_a_study_whose_trials_all_failed(tmp_path, history):
    rows = [{"trial": name, "status": "failed", "val_top1": None, "error": "loss is nan"} for name in "ab"]
    page, charts = write_page(write_study(tmp_path / "study", rows, history, failed=2), tmp_path / "out")
    assert not charts
    assert "No trial reported a metric" in page and page.count("loss is nan") == 2


def test_non_finite_metrics_do_not_hide_other_trials(tmp_path):
    rows = [
        {"trial": "a", "status": "finished", "val_top1": 0.5, "optimizer.lr": 0.1},
        {"trial": "b", "status": "finished", "val_top1": 0.4, "optimizer.lr": 0.2},
        {"trial": "c", "status": "stopped early", "val_top1": float("inf"), "optimizer.lr": 0.3},
        {"trial": "d", "status": "not started", "val_top1": None, "optimizer.lr": 0.4},
    ]
    history = {"a": [0.3, float("nan"), 0.5], "b": [0.4, float("inf")], "c": [float("inf")]}
    study = write_study(tmp_path / "study", rows, history, parameters=["optimizer.lr"])
    page, charts = write_page(study, tmp_path / "out")
    assert list(charts) == [*CHARTS, "Hyperparameter effects"]
    assert "for 2 trials: 2 finished." in page and "Trials without a reported metric: 2." in page


def test_pareto_front_of_several_objectives(tmp_path):
    objectives = ["val_top1", "images_per_s", "parameters"]
    study = random_study(tmp_path / "study", 30, objectives=objectives)
    board = pd.read_csv(study / "leaderboard.csv")
    board["pareto"] = [
        None if status == "failed" else rank in (1, 4)
        for status, rank in zip(board["status"], board["rank"], strict=True)
    ]
    board.to_csv(study / "leaderboard.csv", index=False)
    page, charts = write_page(study, tmp_path / "out")
    title = "Pareto front: validation top-1, training images/s, model parameters"
    assert mark_count(charts[title]) > 30
    assert "2 of 26 trials are on the Pareto front" in page
    section = page.split(f">{title}</h3>")[1].split("<h3")[0]
    assert section.count("<tr>") == 3 and re.search(r"[123],000,000", section)


def test_exploits_of_population_based_training(tmp_path):
    exploits = [
        {"trial": "002-$x$_<i>", "source": "000-$x$_<i>", "epoch": 2, "changed": {"optimizer.lr": [0.1, 0.08]}},
        {"trial": "004-$x$_<i>", "source": "000-$x$_<i>", "epoch": 1, "changed": {"optimizer.name": ["sgd", "adam"]}},
    ]
    study = random_study(tmp_path / "study", 6, exploits=exploits, best={"trial": "000-$x$_<i>"})
    page, charts = write_page(study, tmp_path / "out")
    assert "Hyperparameter schedules" in charts
    assert "Population based training made 2 exploit steps." in page and "optimizer.lr 0.1 → 0.08" in page
    assert pd.read_csv(tmp_path / "out" / "exploits.csv")["epoch"].tolist() == [1, 2]


def test_losses_with_a_wide_range(tmp_path):
    rows = [
        {"trial": f"t{n}", "status": "finished", "val_loss": loss, "optimizer.lr": 0.1 * (n + 1)}
        for n, loss in enumerate([0.5, 0.7, 2.0, 9.0, 4000.0])
    ]
    history = {row["trial"]: [2 * row["val_loss"], row["val_loss"]] for row in rows}
    study = write_study(tmp_path / "study", rows, history, metric="val_loss", mode="min", parameters=["optimizer.lr"])
    page, charts = write_page(study, tmp_path / "out")
    assert list(charts) == [*CHARTS, "Hyperparameter effects"]
    assert "The best value, 0.5, was reached after" in page


def test_files_with_missing_columns_are_named_in_errors(tmp_path):
    study = random_study(tmp_path / "study", 4)
    board = pd.read_csv(study / "leaderboard.csv")
    board.drop(columns="val_top1").to_csv(study / "leaderboard.csv", index=False)
    with pytest.raises(UserError, match=r"leaderboard\.csv: missing column val_top1; run the study again"):
        write_report(locate(str(study)), locate(str(tmp_path / "out")))
    (study / "study.json").write_text('{"name": "s"}')
    with pytest.raises(UserError, match=r"study\.json: missing metric, dataset, trials"):
        write_report(locate(str(study)), locate(str(tmp_path / "out")))
