"""Class folders: complete listings, unique IDs and clear errors."""

import dataclasses
from pathlib import Path

import pytest

from landmark.config import FoldersConfig, PrepareConfig, SplitConfig, SubsetConfig, UserError
from landmark.data.packing.catalog import request_images
from landmark.data.packing.plan import fingerprint, recorded_settings
from landmark.data.packing.sources import class_labels, folder_source


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_files_of_class_folders_are_listed_and_others_ignored(tmp_path: Path):
    make(tmp_path, "b/1.jpg", "a/2.png", "a/deep/3.jpg", "groups.csv", "a/.DS_Store", "a/Thumbs.db", ".git/x")
    items = folder_source(str(tmp_path), None).items()
    assert items["origin"].to_pylist() == ["a/2.png", "a/deep/3.jpg", "b/1.jpg"]
    assert items["image_id"].to_pylist() == ["2", "3", "1"]
    assert items["landmark_id"].to_pylist() == ["a", "a", "b"]
    assert items["group"].to_pylist() == items["image_id"].to_pylist()


def test_ids_contain_more_of_the_path_if_names_collide(tmp_path: Path):
    make(tmp_path, "a/1.jpg", "b/1.jpg")
    assert folder_source(str(tmp_path), None).items()["image_id"].to_pylist() == ["a/1", "b/1"]
    make(tmp_path, "a/1.png")
    assert folder_source(str(tmp_path), None).items()["image_id"].to_pylist() == ["a/1.jpg", "a/1.png", "b/1.jpg"]


def test_groups_come_from_the_file_and_unknown_ids_are_reported(tmp_path: Path):
    make(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    groups = tmp_path / "groups.csv"
    groups.write_text("id,class,group\n1,a,g\n3,b,g\n77,b,h\n")
    source = folder_source(str(tmp_path), str(groups))
    assert source.items()["group"].to_pylist() == ["group:g", "2", "group:g"]
    assert source.notes() == [f"{groups}: 1 ids have no image"]
    groups.write_text("name,set\n1,2\n")
    with pytest.raises(UserError, match="expected a CSV file with the columns id, group"):
        source.items()


def test_labels_are_in_numeric_order_if_ids_are_numbers():
    import pyarrow as pa

    labels, names = class_labels(pa.table({"landmark_id": ["10", "9", "10", "100"]}))
    assert names == ["9", "10", "100"] and labels.tolist() == [1, 0, 1, 2]
    labels, names = class_labels(pa.table({"landmark_id": ["b", "a", "b"]}))
    assert names == ["a", "b"] and labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("paths", "folders", "message"),
    [
        ([], [], "contains no folder with images"),
        (["loose.jpg"], [], "contains no folder with images"),
        (["a/1.jpg"], [], "contains one class"),
        (["a/1.jpg", "b/1.jpg"], ["c", "d"], r"c: class folder without images \(2 such folders\); remove it"),
    ],
)
def test_folders_without_a_valid_dataset_are_an_error(tmp_path: Path, paths, folders, message):
    make(tmp_path, *paths)
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match=message):
        folder_source(str(tmp_path), None).items()


def test_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="none: no such file or folder"):
        folder_source(str(tmp_path / "none"), None).items()


def test_a_dataset_of_an_older_version_keeps_its_subset():
    """A dataset without a recorded rule is accepted with the same settings. A note names its rule."""
    config = PrepareConfig(output="o", source="synthetic", subset=SubsetConfig(images=500))
    saved = fingerprint(config)
    assert recorded_settings(saved, config) == (True, "")
    del saved["subset"]["rule"]
    same, note = recorded_settings(saved, config)
    assert same and "chosen by rule 1" in note
    assert recorded_settings(saved, dataclasses.replace(config, subset=SubsetConfig(images=501))) == (False, "")
    del saved["packing"]["quality"]
    assert recorded_settings(saved, config)[0], "a setting that the older version did not have gets its default"


def test_a_split_without_images_is_reported(tmp_path: Path):
    make(tmp_path, *(f"{name}/1.jpg" for name in "abc"))
    config = PrepareConfig(output="o", folders=FoldersConfig(path=str(tmp_path)), split=SplitConfig(test=0.0))
    notes = request_images(folder_source(str(tmp_path), None), config).notes
    assert [note.split(":")[0] for note in notes if "split is empty" in note] == [
        "the val split is empty although split.val is 0.15"
    ]
