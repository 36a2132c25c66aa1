"""Tests that `make clean` and the demo delete only files that they created."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_make_clean_keeps_the_users_results(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("runs/study", "datasets/photos", "build", ".mypy_cache"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "datasets", "runs"]
    assert (tmp_path / "runs" / "study").is_dir() and (tmp_path / "datasets" / "photos").is_dir()


def test_the_demo_deletes_no_folder_that_it_did_not_create(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    command = ["bash", str(ROOT / "scripts" / "demo.sh"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"scripts/demo.sh: error: {tmp_path} exists but was not created by the demo; give another folder, or delete it\n"
    )
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"
