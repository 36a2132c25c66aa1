"""Folder listings: each file once despite links, without the output, and with a note on skipped files."""

import os
from pathlib import Path

import pytest

from landmark.commands.prepare import prepare
from landmark.config import FoldersConfig, PrepareConfig, UserError
from landmark.data.packing.sources import folder_source
from landmark.data.sources.listing import holds_dataset, list_files, nested_notes
from landmark.inference.sources import FolderImages
from landmark.storage import NotFound, locate


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_a_link_to_a_parent_folder_is_reported_and_not_followed(tmp_path: Path):
    """Otherwise, 3 photographs would become dozens, including unrelated ones."""
    root = make(tmp_path / "photos", "a/1.jpg", "a/deep/2.jpg", "b/3.jpg")
    (root / "a" / "loop").symlink_to("..")
    (root / "b" / "out").symlink_to(tmp_path)
    listed = list_files(locate(root))
    assert listed.paths == ["a/1.jpg", "a/deep/2.jpg", "b/3.jpg"]
    assert listed.notes == [f"2 links to a folder that contains them were not followed: {root}/a/loop and others"]
    source = folder_source(str(root), None)
    assert source.items()["landmark_id"].to_pylist() == ["a", "a", "b"]
    assert source.notes()[0] == listed.notes[0]


def test_a_file_is_listed_once_under_its_own_path(tmp_path: Path):
    root = make(tmp_path / "photos", "b/1.jpg", "b/2.jpg", "c/3.jpg")
    make(tmp_path, "elsewhere/x/4.jpg", "elsewhere/5.jpg")
    (root / "a").mkdir()
    (root / "a" / "same.jpg").symlink_to("../b/1.jpg")
    (root / "a" / "folder").symlink_to("../b")
    (root / "d").symlink_to(tmp_path / "elsewhere")
    (root / "e").mkdir()
    (root / "e" / "five.jpg").symlink_to(tmp_path / "elsewhere" / "5.jpg")
    (root / "e" / "back").symlink_to("../d")
    (root / "e" / "nowhere.jpg").symlink_to("gone.jpg")
    listed = list_files(locate(root))
    assert listed.paths == ["b/1.jpg", "b/2.jpg", "c/3.jpg", "d/5.jpg", "d/x/4.jpg", "e/nowhere.jpg"]
    (note,) = listed.notes
    assert note.startswith("4 links to files or folders that are already listed were skipped: ")


def test_an_output_inside_the_source_is_not_listed(tmp_path: Path):
    root = make(tmp_path / "photos", "a/1.jpg", "b/2.jpg", "out/train/00000.parquet", "out/classes.png")
    output = locate(root / "out")
    assert list_files(locate(root), output).paths == ["a/1.jpg", "b/2.jpg"]
    assert folder_source(str(root), None, output).items()["landmark_id"].to_pylist() == ["a", "b"]
    assert FolderImages.of(locate(root), output=output).names == ("a/1.jpg", "b/2.jpg")
    with pytest.raises(UserError, match="contains the source images; choose another --output"):
        prepare(PrepareConfig(output=f"{root}/", source="folders", folders=FoldersConfig(path=str(root))))


def test_non_utf8_names_and_paths_that_are_no_folder_are_reported(tmp_path: Path):
    root = make(tmp_path / "photos", "a/1.jpg", "b/2.jpg", "a/.hidden/3.jpg", ".git/4")
    Path(os.fsdecode(os.fsencode(root / "a") + b"/\xff.jpg")).write_bytes(b"x")
    listed = list_files(locate(root))
    assert listed.paths == ["a/1.jpg", "b/2.jpg"] and listed.folders == {"a", "b"}
    assert listed.notes == [
        "1 files and folders with names that are not UTF-8 were skipped; "
        f"rename them to include them: {root}/a/\ufffd.jpg"
    ]
    with pytest.raises(UserError, match="is a file; expected a folder"):
        list_files(locate(root / "a" / "1.jpg"))
    with pytest.raises(NotFound, match="no such file or folder"):
        list_files(locate(root / "none"))


def test_a_single_file_is_one_image(tmp_path: Path):
    make(tmp_path, "a b#1.jpg", "c.jpg")
    location = locate(tmp_path / "a b#1.jpg")
    assert not holds_dataset(location)
    images = FolderImages.of(location)
    assert (images.names, images.rows, images.place) == (("a b#1.jpg",), 1, location.uri)
    assert (locate(images.folder) / images.names[0]).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train/a/1.jpg", "val/a/2.jpg", "test/b/3.jpg"], "test, train, val"),
        (["Train/a/1.jpg", "Train/b/2.jpg", "valid/a/3.jpg", "x/4.jpg"], "Train, valid"),
        (["train/a/1.jpg", "train/b/2.jpg"], "train"),
    ],
)
def test_split_folders_are_not_accepted_as_classes(tmp_path: Path, paths, splits):
    root = make(tmp_path, *paths)
    with pytest.raises(UserError, match=rf"contains folders of splits \({splits}\) that contain folders of classes"):
        folder_source(str(root), None).items()


def test_flattening_nested_folders_is_reported(tmp_path: Path):
    root = make(tmp_path, "a/day/1.jpg", "a/2.jpg", "test/3.jpg", "train/x/4.jpg")
    source = folder_source(str(root), None)
    assert source.items()["landmark_id"].to_pylist() == ["a", "a", "test", "train"]
    assert source.notes() == [
        f"2 images are in subfolders of a class folder and belong to that class, such as {root}/a/day/1.jpg"
    ]
    assert nested_notes(locate(root), ["a/2.jpg"]) == []
