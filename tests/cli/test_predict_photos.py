"""Tests `landmark predict RUN IMAGE...`: predictions for single photographs, in the terminal and as JSON."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from landmark.cli import main
from landmark.training.run import run_training
from tests.support.packed import picture, write_packed
from tests.training.test_run import config

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("photos")
    dataset = write_packed(folder / "dataset", {"train": [50, 47], "val": [21], "test": [23]}, classes=4)
    return run_training(config(dataset, folder, epochs=6)).run


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for label in range(3):
        (folder / f"{label}.jpg").write_bytes(picture(label, 900, 40))
    return folder


def test_one_photograph_gets_top_k_classes_with_scores(run, photos, capsys):
    assert main(["predict", run, str(photos / "1.jpg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photos / "1.jpg")
    assert lines[1].endswith("%  c1") and len([line for line in lines if "%" in line]) >= 4
    assert main(["predict", run, str(photos / "1.jpg"), "--top-k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) in (3, 4)


def test_files_folders_and_stdin_are_predicted_together(run, photos):
    command = [sys.executable, "-m", "landmark", "predict", run, str(photos), str(photos / "2.jpg"), "-", "--json"]
    done = subprocess.run(command, cwd=ROOT, input=(photos / "0.jpg").read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    results = json.loads(done.stdout)["results"]
    assert [result["image"] for result in results] == [*(f"{photos}/{n}.jpg" for n in (0, 1, 2, 2)), "stdin"]
    assert [result["predictions"][0]["name"] for result in results] == ["c0", "c1", "c2", "c2", "c0"]
    assert {type(result["probably_no_landmark"]) for result in results} == {bool}


def test_an_image_without_a_landmark_is_reported(run, photos, capsys):
    (Path(run) / "no_landmark.json").unlink(missing_ok=True)
    assert main(["predict", run, str(photos / "0.jpg"), "--reject", "1.0"]) == 0
    assert "probably no landmark: the top score is below 100.00%" in capsys.readouterr().out
    assert not (Path(run) / "no_landmark.json").exists()  # --reject replaces the run's own threshold
    assert main(["predict", run, str(photos / "0.jpg")]) == 0
    stored = json.loads((Path(run) / "no_landmark.json").read_text())
    assert 0 < stored["threshold"] < 1
    assert main(["predict", run, str(photos / "0.jpg"), "--by", "knn"]) == 1  # there is no gallery yet
    assert "no gallery; build one with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{photos}/none.jpg"], 1, "none.jpg: does not exist"),
        ([], 2, "IMAGES is missing"),
        (["{photos}/broken.jpg"], 1, "broken.jpg: not an image"),
        (["{run}/../dataset"], 1, "a packed dataset; add --output FOLDER"),
        (["{photos}/0.jpg", "--format", "csv"], 1, "format applies only to written predictions; add --output"),
        (["{photos}/0.jpg", "--batch-size", "4"], 1, "batch_size applies only to written predictions; add --output"),
        (["{photos}/0.jpg", "--cache", "/tmp/c", "--cache-gib", "1"], 1, "cache applies only to written predictions"),
        (["{photos}/0.jpg", "--cache-gib", "1"], 2, "cache_gib is set without cache; add --cache FOLDER"),
        (
            ["{photos}", "-o", "{photos}/out", "--cache", "/tmp/c", "--cache-gib", "1"],
            1,
            "cache applies to a packed dataset, but",
        ),
        (["{photos}/0.jpg", "--address", "auto"], 1, "cluster applies only to written predictions; add --output"),
        (
            ["{photos}", "--by", "knn", "--gallery", "{photos}/none"],
            1,
            "photos/none: no gallery; build one with",
        ),
        (["{photos}/0.jpg", "{photos}/1.jpg", "-o", "{photos}/out"], 1, "with --output, give one folder"),
    ],
)
def test_invalid_arguments_are_one_line_errors(run, photos, capsys, arguments, code, message):
    (photos / "broken.jpg").write_bytes(b"no picture")
    filled = [argument.format(photos=photos, run=run) for argument in arguments]
    assert main(["predict", run, *filled]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_one_unreadable_file_does_not_stop_the_others(run, photos, capsys):
    (photos / "broken.jpg").write_bytes(b"no picture")
    assert main(["predict", run, str(photos)]) == 0
    output = capsys.readouterr()
    assert "broken.jpg: not an image" in output.err and output.out.count(".jpg\n") == 3


def test_printed_knn_predictions_use_the_given_gallery(run, photos, tmp_path, capsys):
    gallery = str(tmp_path / "gallery")
    assert main(["index", run, "--gallery", gallery]) == 0
    capsys.readouterr()
    assert main(["predict", run, str(photos), "--by", "knn", "--gallery", gallery, "--top-k", "1"]) == 0
    output = capsys.readouterr()
    assert [line.split()[-1] for line in output.out.splitlines() if "%" in line] == ["c0", "c1", "c2"]
    assert "a check for images without a landmark needs --reject" in output.err
    record = tmp_path / "gallery" / "gallery.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"weights": "of another model"}))
    assert main(["predict", run, str(photos), "--by", "knn", "--gallery", gallery]) == 1
    assert "built with different weights; build it again with" in capsys.readouterr().err


def test_unreadable_validation_images_disable_the_no_landmark_check(run, photos, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(Path(run).parent, copy)
    for meta in (copy / "train").rglob("meta.json"):
        meta.write_text(meta.read_text().replace(str(Path(run).parent), str(copy)))
    (copy / "train" / "no_landmark.json").unlink(missing_ok=True)
    for shard in (copy / "dataset" / "val").glob("*.parquet"):
        shard.unlink()
    assert main(["predict", str(copy / "train"), str(photos / "1.jpg"), "--top-k", "1"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[1].endswith("c1") and "needs --reject" in output.err
