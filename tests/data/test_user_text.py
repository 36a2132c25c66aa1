"""Text files from users: any encoding is read, and any mistake is a one-line error with its position."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark.config import SpaceConfig, SubsetConfig, TrainConfig, UserError, load_yaml
from landmark.data.packing.sources import read_groups
from landmark.data.sources.gldv2 import (
    SourceFaults,
    published_md5,
    read_attribution,
    read_categories,
    read_clean_ids,
    read_images,
    read_solution,
)
from landmark.data.subset import select_images
from landmark.recipes import recipe_values
from landmark.search.spaces.space import Space
from landmark.storage import locate

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-bom", "utf-16-be-bom"]
GROUPS = "id,group\nGänse 1,Straße\nb,\nc,null\n"
SPACE = "parameters: {optimizer.lr: {grid: [0.01, 0.02]}}\nrecipe: {epochs: 2}\n"


def encoded(text: str, encoding: str) -> bytes:
    if encoding.endswith("-bom"):
        encoding = encoding.removesuffix("-bom")
        return "\ufeff".encode(encoding) + text.encode(encoding)
    return text.encode(encoding)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_and_line_endings_of_all_platforms_are_read(tmp_path: Path, encoding, newline):
    def write(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(text.replace("\n", newline), encoding))
        return str(tmp_path / name)

    assert read_groups(locate(write("groups.csv", GROUPS))) == {"Gänse 1": "Straße", "b": "", "c": ""}
    assert read_groups(locate(write("groups.csv", GROUPS.replace(",", ";"))))["Gänse 1"] == "Straße"
    table = pa.table({"image_id": ["1", "2", "3"], "landmark_id": ["Tempel am Fluß", "a", "a"]})
    listed = write("ids.txt", "\nTempel am Fluß \n")
    assert select_images(table, SubsetConfig(landmarks=listed), 0).tolist() == [True, False, False]
    recipe = write("recipe.yaml", "epochs: 7\n# Straße\n")
    assert recipe_values(recipe) == {"epochs": 7}
    assert Space.load(write("space.yaml", SPACE)).total == 2
    assert load_yaml(TrainConfig, write("run.yaml", "dataset: Straße\n")).dataset == "Straße"
    root, one = locate(tmp_path / "gldv2"), "0123456789abcdef"
    write("gldv2/train.csv", f"id,url,landmark_id\n{one},http://ü,7\n")
    assert read_images(root, SourceFaults()).to_pylist() == [{"image_id": one, "landmark_id": 7}]
    write("gldv2/md5sum/train/md5.images_000.txt", "0" * 32 + " images_000.tar\n")
    assert published_md5(root, "train/images_000.tar") == "0" * 32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty; expected a CSV file with the columns id, group"),
        (b"\n \r\n", "empty; expected"),
        ("id,group\nGänse,g\n".encode("latin-1"), "line 2: byte 0xe4 is not UTF-8; save the file as UTF-8"),
        (b"id,group\n1,g\n2,\0\n", "line 3: contains a null byte"),
        ("id,group\n1,g\n".encode("utf-16-le"), "line 1: contains a null byte"),
        (b"\xff\xfei\0d\0,", "line 1: byte 0x2c is not UTF-16-LE"),
        (b"id,set\n1,g\n", "line 1: no column 'group' among id, set"),
        (b"id,group,id\n1,g,2\n", "line 1: 2 columns 'id' among id, group, id"),
        (b"id,group\n1,g\n2\n", "line 3: 1 cells; expected 2: id, group"),
        (b"id,group\n\n1,g,x\n", "line 3: 3 cells; expected 2"),
        (b'id,group\n1,"g\n2,h\n', "line 2: unexpected end of data; check the quotes"),
        (b'id,group\n1,"g"x\n', "line 2: .* check the quotes"),
        (b"id,group\n,g\n", "line 2: the id is empty"),
        (b"id,group\n1,g\n2,h\n1,h\n", "line 4: '1' has the group 'h', but 'g' in line 2"),
        (b"id,group\n1," + b"x" * 200_000 + b"\n", "line 2: field larger than field limit"),
    ],
)
def test_an_error_in_a_groups_file_names_the_line(tmp_path: Path, data, message):
    file = tmp_path / "groups.csv"
    file.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(f"{file}: ") + message) as error:
        read_groups(locate(file))
    assert "\n" not in str(error.value)


def test_quotes_and_repeated_rows_of_a_groups_file_are_read(tmp_path: Path):
    (tmp_path / "groups.csv").write_text('group,id\n"a, ""b""",1\n"a, ""b""",1\n" c ",2,\n')
    assert read_groups(locate(tmp_path / "groups.csv")) == {"1": 'a, "b"', "2": "c"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "contains no landmark id; expected one per line"),
        (b"\xef\xbb\xbf\r\n", "contains no landmark id"),
        (b"a\ncaf\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        (b"a\nb\n\nc\n", r"2 of 3 landmark ids are not in the dataset, such as 'b' \(line 2\)"),
    ],
)
def test_an_error_in_a_landmarks_file_names_the_line(tmp_path: Path, data, message):
    file = tmp_path / "ids.txt"
    file.write_bytes(data)
    for landmarks in (["a", "x"], pa.array([1, 2], pa.int64())):
        table = pa.table({"image_id": ["1", "2"], "landmark_id": landmarks})
        with pytest.raises(UserError, match=re.escape(f"{file}: ")) as error:
            select_images(table, SubsetConfig(landmarks=str(file)), 0)
        assert "\n" not in str(error.value)
        if isinstance(landmarks, list):
            assert re.search(message, str(error.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nepochs: 2\n", "line 2, column 1 the key 'epochs' occurs twice"),
        ("model: {backbone: a, backbone: b}\n", "line 1, column 22 the key 'backbone' occurs twice"),
        ("epochs: 2024-13-45\n", "line 1, column 9 '2024-13-45' is not a valid timestamp"),
        ("epochs: !!int xx\n", "line 1, column 9 'xx' is not a valid int"),
        ("a: 1\nb: \x01\n", "line 2: special characters are not allowed"),
        ("[" * 400, "nested too deeply|expected"),
        ("", "expected 'key: value' lines at the top, got NoneType"),
    ],
)
def test_an_error_in_a_yaml_file_names_the_line(tmp_path: Path, text, message):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    for read in (lambda: load_yaml(TrainConfig, file), lambda: recipe_values(str(file)), lambda: Space.load(str(file))):
        with pytest.raises(UserError, match=message) as error:
            read()
        assert str(error.value).startswith(f"{file}:") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"id,url,landmark_id\n0123456789abcdef,u,1\n0123456789abcde\xe9,u,1\n", "line 3: byte 0xe9 is not UTF-8"),
        (b"", "Empty CSV file"),
        (b"image,url\n1,2\n", "expected the columns id, landmark_id"),
    ],
)
def test_an_error_in_a_gldv2_csv_file_names_the_file(tmp_path: Path, text, message):
    (tmp_path / "train.csv").write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        read_images(locate(tmp_path), SourceFaults())
    assert str(error.value).startswith(f"{tmp_path}/train.csv: ") and "\n" not in str(error.value)


def test_malformed_rows_of_gldv2_are_counted(tmp_path: Path):
    rows = [
        b"id,url,landmark_id",
        b"0123456789abcdef,caf\xe9,1",
        b"0123456789abcde\0,u,1",
        b'0123456789abcdee,"u,1',
        b"",
    ]
    (tmp_path / "train.csv").write_bytes(b"\n".join(rows))
    faults = SourceFaults()
    assert len(read_images(locate(tmp_path), faults)) == 1
    assert faults.counts["malformed id"] == 1 and faults.counts["malformed row"] >= 1


WORDS = ["id", "group", "landmark_id", "images", "Usage", "landmarks", "category", "author", "license"]
VALUES = ["0123456789abcdef", "7", "Straße", "null"]
MARKS = [
    '"',
    '""',
    "'",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "&a",
    "*a",
    "!!int ",
    "|",
    "#",
    "<<",
    " ",
    "\0",
    "\u2028",
    "\ufeff",
    "🗽",
    "\x1b",
]
ENDS = [",", ",", ",", ";", "\t", "\n", "\n", "\n", "\r\n", "\r", ": ", ": ", "- "]
PIECES = st.sampled_from([*WORDS, *VALUES, *MARKS, *ENDS])
MANGLED = st.builds(
    lambda head, pieces, encoding, cut: encoded(head + "".join(pieces), encoding)[: cut or None],
    st.sampled_from(
        ["", GROUPS, SPACE, "id,url,landmark_id\n0123456789abcdef,u,7\n", "id,group\n", "landmark_id,images\n7,"]
    ),
    st.lists(PIECES, max_size=30),
    st.sampled_from([*ENCODINGS, "utf-16-le"]),
    st.integers(0, 200) | st.just(0),
) | st.binary(max_size=80)


@given(MANGLED)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_text_never_causes_a_traceback(tmp_path: Path, data):
    """Each file is read, or raises a one-line error that starts with its name."""
    root = locate(tmp_path)
    names = ["groups.csv", "ids.txt", "x.yaml", "train.csv", "train_clean.csv", "train_attribution.csv"]
    names += ["train_label_to_category.csv", "recognition_solution_v2.1.csv", "md5sum/train/md5.images_000.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    table = pa.table({"image_id": ["1"], "landmark_id": ["7"]})
    yaml = str(tmp_path / "x.yaml")
    readers = [
        lambda: read_groups(root / "groups.csv"),
        lambda: select_images(table, SubsetConfig(landmarks=str(tmp_path / "ids.txt")), 0),
        lambda: load_yaml(TrainConfig, yaml),
        lambda: load_yaml(SpaceConfig, yaml),
        lambda: recipe_values(yaml),
        lambda: published_md5(root, "train/images_000.tar"),
        *(
            lambda read=read: read(root, SourceFaults())
            for read in (read_images, read_clean_ids, read_attribution, read_categories, read_solution)
        ),
    ]
    for read in readers:
        try:
            read()
        except UserError as error:
            lines = str(error).splitlines()
            if not lines[0].startswith(str(tmp_path)) or len(lines) > 1:
                pytest.fail(f"expected one line that starts with the file name: {error}")
