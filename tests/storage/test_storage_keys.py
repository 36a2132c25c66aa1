"""Keys and file names: each valid name is read, written, listed and deleted unchanged."""

import string
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark.config import UserError
from landmark.data.packing.sources import FolderSource
from landmark.storage import Location, locate
from landmark.storage.tables import read_table
from tests.support.seaweed import Seaweed

NAMES = [
    "Gate #3",
    "what?",
    "a+b c",
    "100%",
    "%41",
    "tab\there",
    "new\nline",
    "😀",
    "grüße",
    "'\"<&>;=,@:~",
    " x ",
    "a.b",
]
CHARACTERS = st.sampled_from([*"#?+% \t\n&=;:,@!$'()*~\"<>[]{}|^`", *"abZ9.-_", "ü", "😀", "\u0301", "漢"])
NAME = st.text(CHARACTERS, min_size=1, max_size=12).filter(lambda name: name.strip(".") and name.strip(" \t\n"))


@pytest.fixture(params=["disk", "s3", "file uri"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        server: Seaweed = request.getfixturevalue("s3")
        return locate(server.uri(f"keys #1?/{tmp_path.name}"))
    folder = tmp_path / "keys #1?"
    return locate(folder if request.param == "disk" else f"file://{tmp_path}/keys%20%231%3F")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAME, min_size=1, max_size=3, unique=True))
def test_any_name_is_stored_unchanged(location: Location, names: list[str]):
    folder = location / uuid.uuid4().hex
    for number, name in enumerate(names):
        (folder / name / f"{name}.jpg").write_bytes(b"%d" % number)
    paths = sorted(f"{name}/{name}.jpg" for name in names)
    assert folder.walk() == paths and folder.names() == sorted(names)
    for number, name in enumerate(names):
        file = folder / name / f"{name}.jpg"
        assert file.exists() and file.read_bytes() == b"%d" % number
        assert locate(file.uri) == file
    folder.delete()
    assert not folder.exists()


def test_images_and_tables_under_unusual_names_are_read(location: Location, tmp_path: Path):
    for name in NAMES:
        (location / "photos" / name / f"{name} 1.jpg").write_text(name)
    source = FolderSource(root=location / "photos")
    rows = source.items().to_pylist()
    assert sorted(row["landmark_id"] for row in rows) == sorted(NAMES)
    assert all(source.read(row).decode() == row["landmark_id"] for row in rows)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "table")
    (location / "exp#1?" / "table").upload(tmp_path / "table")
    assert read_table(location / "exp#1?" / "table").to_pylist() == [{"a": 1}]
    assert location.names() == ["exp#1?", "photos"]


def test_a_key_is_the_literal_text_after_the_bucket(s3: Seaweed):
    import botocore.session

    client = botocore.session.get_session().create_client("s3", endpoint_url=f"http://127.0.0.1:{s3.ports[3]}")
    for key in ("literal/a%20b", "literal/Gate #3?x=1", "literal/+ +"):
        client.put_object(Bucket="landmark", Key=key, Body=key.encode())
        assert locate(f"s3://landmark/{key}").read_text() == key
        locate(f"s3://landmark/{key}.copy").write_text(key)
        assert client.get_object(Bucket="landmark", Key=f"{key}.copy")["Body"].read().decode() == key


def test_file_uris_name_local_paths(tmp_path: Path):
    (tmp_path / "a b#c").write_text("x")
    quoted = f"{tmp_path}/a%20b%23c"
    for uri in (f"file://{quoted}", f"file://localhost{quoted}", f"file:{quoted}", f"FILE://{tmp_path}/a b#c"):
        assert locate(uri).uri == f"{tmp_path}/a b#c" and locate(uri).read_text() == "x"
    with pytest.raises(UserError, match=r"contains the host 'server'; expected file:///path"):
        locate("file://server/share/x")
    odd = tmp_path / "a:/b" / "s3:" / "c"
    odd.parent.mkdir(parents=True)
    odd.write_text("y")
    assert locate(odd).read_text() == "y"


def test_names_appended_to_an_http_uri_are_quoted():
    assert (locate("https://host/a%20b") / "Gate #3?.jpg").uri == "https://host/a%20b/Gate%20%233%3F.jpg"
    assert all((locate("https://host") / c).uri.isascii() for c in string.printable.strip() + "ü😀")
