"""Verification: each kind of damage is reported with its file, and a complete dataset has no problems."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from landmark.cli import main
from landmark.data.dataset import PackedDataset
from landmark.data.verify import verify_dataset
from tests.support.packed import write_packed


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    found = write_packed(tmp_path / "d", {"train": [40, 24], "val": [13], "test": []})
    empty = pa.table({"image_id": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "d" / "rejects.parquet")
    return found


def rewrite(path: Path, column: str, change) -> None:
    """Change one column of a small Parquet file."""
    table = pq.read_table(path)
    index = table.schema.get_field_index(column)
    values = change(table[column].to_pylist())
    pq.write_table(table.set_column(index, column, pa.array(values, table.schema.field(column).type)), path)


def swapped(values: list) -> list:
    return [values[1], values[0], *values[2:]]


def test_a_complete_dataset_has_no_problems(dataset):
    assert list(verify_dataset(dataset)) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "fault", "message"),
    [
        ("train/00001.parquet", lambda p: p.unlink(), "missing; 24 images lost"),
        ("train/00001.parquet", lambda p: p.write_bytes(p.read_bytes()[:-9]), "bytes; expected"),
        ("train/00001.parquet", flip, "its content changed: SHA-256"),
        ("train/00001.parquet", lambda p: p.write_bytes(b""), "0 bytes; expected"),
        ("catalog.parquet", lambda p: p.unlink(), "missing"),
        ("catalog.parquet", lambda p: p.write_bytes(b"no"), "not a readable Parquet file"),
        ("catalog.parquet", lambda p: rewrite(p, "image_id", swapped), "image_id of train/00000.parquet: row 0 is"),
        ("catalog.parquet", lambda p: rewrite(p, "image_id", lambda v: [v[1], *v[1:]]), "1 image ids occur more"),
        ("catalog.parquet", lambda p: rewrite(p, "label", swapped), "label of train/00000.parquet: row 0 is 0, but 1"),
        ("catalog.parquet", lambda p: rewrite(p, "row_group", lambda v: [1, *v[1:]]), "row_group of train/00000"),
        ("catalog.parquet", lambda p: rewrite(p, "sample", lambda v: [9, *v[1:]]), "the samples of train are not 0"),
        ("catalog.parquet", lambda p: rewrite(p, "shard", lambda v: [1, *v[1:]]), "the shards of train do not match"),
        ("labels.parquet", lambda p: rewrite(p, "images", lambda v: [v[0] + 1, *v[1:]]), "label 0 has"),
        ("labels.parquet", lambda p: rewrite(p, "label", lambda v: [1, *v[1:]]), "its labels are not 0 to 3"),
        (
            "rejects.parquet",
            lambda p: pq.write_table(pa.table({"image_id": ["x"]}), p),
            "1 rows; expected 0 (manifest)",
        ),
    ],
)
def test_each_fault_is_reported_with_its_file(dataset, file, fault, message, capsys):
    fault(Path(dataset.location.uri) / file)
    assert main(["prepare", "--output", dataset.location.uri, "--verify"]) == 1
    captured = capsys.readouterr()
    assert any(f"/{file}: " in line and message in line for line in captured.out.splitlines()), captured.out
    assert captured.err.splitlines()[-1].startswith("landmark prepare: error: ") and "listed above" in captured.err


def test_a_shard_with_a_wrong_row_count_is_reported_despite_its_checksum(dataset):
    """The manifest itself is wrong: the shard has fewer rows than the manifest records."""
    manifest = Path(dataset.location.uri) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows": 24', '"rows": 25', 1))
    problems = list(verify_dataset(PackedDataset.open(dataset.location.uri)))
    assert any("train/00001.parquet: 24 rows in 3 row groups; expected 25 in 3" in p for p in problems)
    assert np.any(["catalog.parquet: 64 rows of train" not in p for p in problems])


def test_verify_prints_the_counts_of_a_valid_dataset(dataset, capsys):
    assert main(["prepare", "--output", dataset.location.uri, "--verify"]) == 0
    assert "77 images in 3 shards" in capsys.readouterr().out


def test_a_missing_dataset_is_an_error(tmp_path, capsys):
    assert main(["prepare", "--output", str(tmp_path / "none"), "--verify"]) == 1
    assert "no manifest.json" in capsys.readouterr().err
