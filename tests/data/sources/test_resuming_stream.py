"""Resuming streams: each byte once, for any storage and any number of broken connections."""

from pathlib import Path

import numpy as np
import pytest

from landmark.config import UserError
from landmark.data.sources.resuming_stream import CHUNK_BYTES, ResumingStream, is_there, read_whole
from landmark.storage import NotFound, locate
from tests.support.seaweed import Seaweed, free_ports
from tests.support.web import WebServer

DATA = np.random.default_rng(0).bytes(2 * CHUNK_BYTES + 1234)


def read(uri: str) -> bytes:
    with ResumingStream(locate(uri)) as stream:
        return stream.readall()


def test_a_file_on_disk_is_read_completely(tmp_path: Path):
    (tmp_path / "f").write_bytes(DATA)
    assert read(str(tmp_path / "f")) == DATA
    (tmp_path / "empty").write_bytes(b"")
    assert read(str(tmp_path / "empty")) == b""


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_resumes_at_its_offset(web: WebServer, ranges):
    (web.folder / "f").write_bytes(DATA)
    web.ranges = ranges
    web.breaks = [CHUNK_BYTES + 5, 100, CHUNK_BYTES // 2]
    web.busy = 1
    assert read(web.uri("f")) == DATA
    starts = [start for _, start in web.requests]
    if ranges:
        second, third = CHUNK_BYTES + 5, CHUNK_BYTES + 105
        assert starts == [0, 0, second, third, third + CHUNK_BYTES // 2]
    else:
        assert set(starts) == {0} and len(starts) == 5


def test_reading_an_object_survives_a_killed_server(s3: Seaweed):
    location = locate(s3.uri("streams/f"))
    location.write_bytes(DATA)
    with ResumingStream(location) as stream:
        first = stream.read(1000)
        s3.kill()
        s3.start()
        assert first + stream.readall() == DATA


def test_missing_or_forbidden_files_and_a_busy_server_are_clear_errors(web: WebServer, monkeypatch):
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "1")
    (web.folder / "f").write_bytes(b"x")
    assert is_there(locate(web.uri("f"))) and not is_there(locate(web.uri("g")))
    assert read_whole(locate(web.uri("f"))) == b"x"
    with pytest.raises(NotFound, match="g: no such file"):
        read(web.uri("g"))
    web.missing = 403
    assert not is_there(locate(web.uri("g")))
    with pytest.raises(UserError, match="g: HTTP status 403 .*check the address"):
        read(web.uri("g"))
    web.busy = 1000
    with pytest.raises(UserError, match="the web server does not respond .*HTTP status 503"):
        read(web.uri("f"))


def test_an_unreachable_server_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "1")
    with pytest.raises(UserError, match="the web server does not respond .*refused"):
        read(f"http://127.0.0.1:{free_ports(1)[0]}/f")
