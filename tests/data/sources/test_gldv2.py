"""The CSV files of GLDv2: read as published, with faults counted and listed."""

from pathlib import Path

import pytest

from landmark.config import UserError
from landmark.data.sources.gldv2 import (
    SourceFaults,
    find,
    id_keys,
    read_attribution,
    read_categories,
    read_clean_ids,
    read_images,
    read_solution,
    tar_images,
)
from landmark.storage import Location, locate

IDS = [f"{number:x}".rjust(16, "0") for number in (17, 2**64 - 1, 10, 3735928559)]


def folder(path: Path, **files: str) -> Location:
    for name, text in files.items():
        (path / f"{name}.csv").write_text(text)
    return locate(path)


def test_train_csv_is_read_in_order(tmp_path: Path):
    text = "id,url,landmark_id\n" + f'{IDS[0]},"http://x/a,b.jpg",5\n{IDS[1]},http://x/c.jpg,203093\n'
    faults = SourceFaults()
    table = read_images(folder(tmp_path, train=text), faults)
    assert table.to_pydict() == {"image_id": IDS[:2], "landmark_id": [5, 203093]}
    assert faults.total() == 0


def test_faulty_rows_are_counted_listed_and_left_out(tmp_path: Path):
    rows = [
        f"{IDS[0]},u,5",
        f"{IDS[0]},u,6",
        "nothex,u,5",
        f"{IDS[1]},u,x",
        f"{IDS[2]},u",
        f"{IDS[3]},u,7",
    ]
    faults = SourceFaults()
    table = read_images(folder(tmp_path, train="id,url,landmark_id\n" + "\n".join(rows) + "\n"), faults)
    assert table["image_id"].to_pylist() == [IDS[0], IDS[3]]
    assert table["landmark_id"].to_pylist() == [5, 7]
    assert faults.counts == {
        "duplicated id": 1,
        "malformed id": 1,
        "malformed landmark_id": 1,
        "malformed row": 1,
    }
    assert {reason for _, _, reason in faults.listed} == set(faults.counts)
    faults.check(1000, 0.01, "train.csv")
    with pytest.raises(UserError, match=r"66\.67% of 6 rows.*1 duplicated id"):
        faults.check(6, 0.5, "train.csv")


def test_files_can_be_in_metadata_and_a_missing_one_is_an_error(tmp_path: Path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "train.csv").write_text("id,url,landmark_id\n")
    assert find(locate(tmp_path), "train.csv").uri.endswith("metadata/train.csv")
    with pytest.raises(UserError, match=r"neither train_clean\.csv"):
        find(locate(tmp_path), "train_clean.csv")


def test_wrong_columns_are_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="expected the columns id, landmark_id"):
        read_images(folder(tmp_path, train="id,url,label\n"), SourceFaults())


def test_the_clean_list_is_read(tmp_path: Path):
    root = folder(tmp_path, train_clean=f"landmark_id,images\n1,{IDS[1]} {IDS[0]}\n7,{IDS[2]}\n")
    assert read_clean_ids(root, SourceFaults()).tolist() == sorted([17, 2**64 - 1, 10])


def test_id_keys_are_the_hexadecimal_numbers():
    import pyarrow as pa

    ids = pa.array(["0" * 16, *IDS])
    assert id_keys(ids.slice(1)).tolist() == [int(text, 16) for text in IDS]


def test_names_come_from_the_hierarchy_or_the_categories(tmp_path: Path):
    root = folder(
        tmp_path,
        train_label_to_category="landmark_id,category\n1,http://commons.wikimedia.org/wiki/Category:Eiffel_Tower\n",
    )
    assert read_categories(root, SourceFaults()).to_pydict() == {"landmark_id": [1], "name": ["Eiffel Tower"]}
    folder(
        tmp_path,
        train_label_to_hierarchical="landmark_id,category,supercategory,hierarchical_label,natural_or_human_made\n"
        "2,http://commons.wikimedia.org/wiki/Category:A,bridge,bridge,human-made\n",
    )
    assert read_categories(root, SourceFaults()).to_pydict() == {
        "landmark_id": [2],
        "name": ["A"],
        "supercategory": ["bridge"],
    }


def test_attribution_is_encoded(tmp_path: Path):
    text = f'id,url,author,license,title\n{IDS[0]},u,"Doe, J",CC BY 2.0,t\n{IDS[1]},u,Roe,CC BY 2.0,t\n'
    table = read_attribution(folder(tmp_path, train_attribution=text), SourceFaults())
    assert table.to_pydict() == {
        "image_id": IDS[:2],
        "author": ["Doe, J", "Roe"],
        "license": ["CC BY 2.0", "CC BY 2.0"],
    }


def test_solution_rows_have_none_one_or_several_landmarks(tmp_path: Path):
    (tmp_path / "recognition_solution_v2.1.csv").write_text(
        f"id,landmarks,Usage\n{IDS[0]},,Public\n{IDS[1]},5,Private\n{IDS[2]},5 9,Ignored\n"
    )
    table = read_solution(locate(tmp_path), SourceFaults())
    assert table.to_pydict() == {
        "image_id": IDS[:3],
        "landmarks": [[], [5], [5, 9]],
        "usage": ["Public", "Private", "Ignored"],
    }


def test_tars_are_listed_or_absent(tmp_path: Path):
    assert tar_images(locate(tmp_path), 500) is None
    (tmp_path / "train").mkdir()
    assert tar_images(locate(tmp_path), 500) is None
    (tmp_path / "train" / "images_003.tar").write_bytes(b"")
    (tmp_path / "train" / "0").mkdir()
    assert tar_images(locate(tmp_path), 500) == ["train/images_003.tar"]
