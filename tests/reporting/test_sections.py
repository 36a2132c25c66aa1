"""Sections of the page: classes, default trial comparison, cleaning, time, cost, tables, and corrupt files."""

import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from landmark.config import UserError
from landmark.reporting.cleaning_page import cleaned_dataset, cleaning_sections
from landmark.reporting.evaluation.classes import class_columns, matrix_data
from landmark.reporting.evaluation.reader import confused_pairs, metrics_table, read_evaluation
from landmark.reporting.page import Gallery, Group, Page, Picture, Section, Widget, render, within_budget
from landmark.reporting.provenance import shown_time
from landmark.reporting.report import write_report
from landmark.reporting.study.trial_comparison import default_pair
from landmark.storage import locate
from tests.reporting.folders import grid_study, write_cleaned, write_evaluation, write_run


def decompressed(data: dict) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(data["data"])))


def test_matrix_contains_all_predictions(tmp_path: Path):
    write_evaluation(tmp_path / "evaluation-test", 30, 2000)
    evaluation = read_evaluation(locate(tmp_path))
    data = matrix_data(evaluation)
    cells = np.array(data["cells"]).reshape(-1, 3)
    assert cells[:, 2].sum() == 2000 == sum(data["support"])
    correct = cells[cells[:, 0] == cells[:, 1]]
    recall = correct[:, 2] / np.array(data["support"])[correct[:, 0]]
    assert recall == pytest.approx(np.array(data["recall"], float)[correct[:, 0]], abs=1e-4)


def test_matrix_of_many_classes_shows_those_with_the_most_errors(tmp_path: Path):
    write_evaluation(tmp_path / "evaluation-test", 900, 20_000, photographs=False)
    evaluation = read_evaluation(locate(tmp_path))
    data = matrix_data(evaluation)
    assert (len(data["names"]), data["total"]) == (200, 900)
    pairs = confused_pairs(evaluation)
    wrong = pairs.groupby("true")["count"].sum()
    shown = {evaluation.names.index(name) for name in data["names"]}
    assert wrong[sorted(shown)].min() >= wrong.drop(sorted(shown)).max()


def test_classes_of_the_split_are_kept_if_not_all_fit(tmp_path: Path):
    write_evaluation(tmp_path / "evaluation-test", 5000, 600, photographs=False)
    evaluation = read_evaluation(locate(tmp_path))
    complete = class_columns(evaluation)
    assert complete["shown"] == complete["total"] == 5000 == len(decompressed(complete)["label"])
    truncated = class_columns(evaluation, limit=20_000)
    assert len(truncated["data"]) <= 20_000 and truncated["shown"] < 5000
    in_split = set(np.flatnonzero(evaluation.classes["images"] > 0))
    labels = decompressed(truncated)["label"]
    assert in_split <= set(labels) or set(labels) <= in_split


def test_default_pair_differs_in_epochs():
    rows = [
        ("a", "finished", "x", "adam", 30),
        ("b", "finished", "y", "adam", 30),
        ("c", "stopped early", "y", "adam", 10),
        ("d", "finished", "y", "adam", 20),
    ]
    board = pd.DataFrame(rows, columns=["trial", "status", "model.backbone", "optimizer.name", "epochs"])
    # The best trial has no counterpart, and c was stopped early. So b and d, the one with fewer epochs first.
    assert default_pair(board) == [3, 1]
    assert default_pair(board.head(2)) == [0, 1]
    assert default_pair(board.head(1)) == [0, 0]


KNN_METRICS = (
    b'{"split": "test", "rows": 1, "classes": 2, "top1": 1, "macro_recall": 1, "classes_present": 1, "knn": %s}'
)


def test_metrics_table_has_baselines_and_intervals():
    metrics = {"top1": 0.7, "majority_top1": 0.1, "random_top1": 0.01, "gap": 0.5, "topology": "x"}
    metrics["knn"] = {"gap": 0.3}
    table = metrics_table({**metrics, "intervals": {"top1": [0.68, 0.72]}}).set_index("metric")
    assert table.loc["top-1", "95% interval"] == "68.00% – 72.00%"
    assert (table.loc["top-1", "majority baseline"], table.loc["GAP", "k-NN"]) == (0.1, 0.3)
    assert "GAP" in table.index and pd.isna(table.loc["GAP", "95% interval"])


def test_photographs_beyond_the_budget_are_omitted():
    galleries = [Gallery(title="", pictures=[Picture(data=b"x" * size, alt="")]) for size in (60, 60, 30)]
    kept, omitted = within_budget(galleries, 100)
    assert [len(gallery.pictures[0].data) for gallery in kept] == [60, 30] and omitted == 1


def test_widget_data_cannot_escape_its_script_element():
    page = Page(title="t", subtitle="s")
    widget = Widget(name="matrix", data={"names": ["</script><script>alert(1)</script>", "\u2028"]})
    page.groups.append(Group(title="g", sections=[Section(title="x", widget=widget)]))
    text = render(page)
    assert "alert(1)</script>" not in text and text.count("</script>") == 2
    assert json.loads(widget.json)["names"][0].startswith("</script>")


def test_audit_of_a_cleaned_dataset(tmp_path: Path):
    cleaned = locate(write_cleaned(tmp_path / "cleaned"))
    sections = {section.title: section for section in cleaning_sections(cleaned, locate(tmp_path / "out"))}
    assert list(sections) == ["Cleaning", "Audit", "Examples by reason"]
    assert "245 of 4,000 images (6.1%) were dropped and 12 relabeled" in sections["Cleaning"].text
    titles = [gallery.title for gallery in sections["Examples by reason"].galleries]
    assert titles[:3] == ["Degenerate image", "Exact duplicate", "Near-duplicate"] and "Label error" in titles
    texts = {cell["text"] for row in sections["Audit"].table["rows"] for cell in row["cells"]}
    assert "relabeled as Citadel of Birk" in texts and "dropped" in texts
    assert (tmp_path / "out" / "cleaning.csv").exists()


def test_cleaned_dataset_is_searched_only_on_the_storage_of_the_run(tmp_path: Path):
    write_cleaned(tmp_path / "cleaned")
    run, plain = locate(tmp_path / "run"), tmp_path / "plain"
    plain.mkdir()
    assert cleaned_dataset(run, str(tmp_path / "cleaned"), None) == locate(tmp_path / "cleaned")
    assert cleaned_dataset(run, str(plain), None) is None
    assert cleaned_dataset(run, "s3://nowhere/cleaned", None) is None  # without a request to the bucket
    with pytest.raises(UserError, match=r"plain: not a cleaned dataset \(clean\.json is missing\)"):
        cleaned_dataset(run, "", str(plain))


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (75, "1 min 15 s"), (15_432, "4 h 17 min"), (200_000, "2 d 7 h"), (0, "0 s")]
)
def test_durations_have_two_units(seconds, text):
    assert shown_time(seconds) == text


def test_config_and_command_are_shown_without_passwords(tmp_path: Path):
    study = grid_study(tmp_path / "study", 3)
    page = Path(write_report(locate(study), locate(study / "report")).path).read_text()
    assert "landmark tune s3://photos/landmarks --space modern --name landmarks" in page
    assert "http://host/" in page and "secret" not in page
    assert "An example CPU @ 2.8 GHz, 48 logical CPUs" in page and "4 nodes, 192 CPUs, 16 GPUs (A100)" in page
    assert ">Time</h3>" in page and "per hour, this cost" not in page


def test_tables_are_written_next_to_the_page(tmp_path: Path):
    study = grid_study(tmp_path / "study", 6)
    write_evaluation(study / "evaluation-test", 12, 300)
    write_report(locate(study), locate(study / "report"))
    folder = study / "report"
    assert pd.read_parquet(folder / "confusion.parquet")["count"].sum() == 300
    assert pd.read_csv(folder / "measures.csv")["metric"].tolist()[:4] == ["top-1", "top-5", "top-10", "GAP"]
    assert pd.read_csv(folder / "measures.csv")["k-NN"].dropna().tolist() == [0.62, 0.55, 0.93]
    bands = pd.read_csv(folder / "bands.csv")
    assert bands.columns.tolist()[4:7] == ["macro_recall", "knn_top1", "knn_macro_recall"]
    assert bands["knn_top1"].fillna(-1).tolist() == [0.8, -1, 0.5]
    assert len(pd.read_parquet(folder / "classes.parquet")) == 12
    assert len(pd.read_parquet(folder / "history.parquet")) == len(pd.read_csv(study / "history.csv"))
    assert {"bands.json", "calibration.csv", "confused_pairs.csv", "comparison.csv"} <= {
        p.name for p in folder.iterdir()
    }


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("metrics.json", b"{", r"evaluation-test/metrics\.json: not valid JSON"),
        ("metrics.json", b"[]", r"evaluation-test/metrics\.json: not a JSON object"),
        (
            "metrics.json",
            b'{"split": "test"}',
            r"metrics\.json: missing rows, classes, top1, macro_recall, classes_present; evaluate",
        ),
        ("per_class.parquet", b"PAR1corruptPAR1", r"per_class\.parquet: not a readable Parquet file"),
        ("examples.parquet", b"", r"examples\.parquet: not a readable Parquet file"),
        (
            "confusion.csv",
            b"a,b\n1,2\n",
            r"confusion\.csv: missing column true, predicted, count; evaluate the model again",
        ),
        ("confusion.csv", b"true,predicted,count\n1,x,2\n", r"confusion\.csv: expected integers"),
        ("confusion.csv", b"\xff\xfe\x00", r"confusion\.csv: not a valid CSV table"),
        ("calibration.csv", b"", r"calibration\.csv: not a valid CSV table"),
        (
            "comparison.json",
            b'{"difference": {"gap": {"a": 1}}}',
            r"comparison\.json: missing b, difference, low, high",
        ),
        ("metrics.json", KNN_METRICS % b'{"gap": "x"}', r"metrics\.json: gap is 'x', expected a number"),
        ("metrics.json", KNN_METRICS % b"3", r"metrics\.json: knn must be an object of metrics; evaluate"),
        ("comparison.json", b"nothing", r"comparison\.json: not valid JSON"),
    ],
)
def test_corrupt_evaluation_raises_a_one_line_error(tmp_path: Path, file, data, message):
    run = write_run(tmp_path / "run")
    folder = write_evaluation(run / "evaluation-test", 5, 50, photographs=False)
    (folder / file).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        write_report(locate(run), locate(tmp_path / "out"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("clean.json", b"{}", r"clean\.json: missing rows_before, rows_after, by_reason; clean the dataset again"),
        ("audit.parquet", b"PAR1", r"audit\.parquet: not a readable Parquet file"),
        ("labels.parquet", b"", r"labels\.parquet: not a readable Parquet file"),
    ],
)
def test_corrupt_audit_raises_a_one_line_error(tmp_path: Path, file, data, message):
    run, cleaned = write_run(tmp_path / "run"), write_cleaned(tmp_path / "cleaned", 5)
    (cleaned / file).write_bytes(data)
    with pytest.raises(UserError, match=message):
        write_report(locate(run), locate(tmp_path / "out"), cleaned=str(cleaned))
