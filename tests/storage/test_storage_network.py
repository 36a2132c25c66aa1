"""Storage over a network: a real S3 server behind a proxy that delays, limits, stalls and goes away."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from landmark.data.sources.resuming_stream import ResumingStream
from landmark.storage import Location, NotFound, TransientStorageError, locate, resuming
from landmark.storage import s3 as requests
from landmark.storage.tables import read_table
from tests.support.proxy import Proxy
from tests.support.seaweed import Seaweed

MB = 1 << 20
SIZE = 17 * MB
"""Enough for an upload in three parts."""


@pytest.fixture
def proxy(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3.ports[3]) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


@pytest.fixture(scope="module")
def content() -> bytes:
    return bytes(range(251)) * (SIZE // 251)


@pytest.fixture
def place(s3: Seaweed, tmp_path: Path) -> Location:
    return locate(s3.uri(f"network/{tmp_path.name}"))


@pytest.fixture
def deadline(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the deadline of an operation; one that is cut off each time fails within half a minute."""

    def put(seconds: float) -> None:
        monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", str(seconds))
        monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "30")

    return put


def test_a_slow_transfer_takes_as_long_as_it_takes(proxy, place, content, tmp_path, deadline):
    (tmp_path / "file").write_bytes(content)
    proxy.bytes_per_s, proxy.delay_s = MB, 0.025
    deadline(4)  # a part of 8 MiB takes 8 s
    (place / "file").upload(tmp_path / "file")
    deadline(1.5)  # a chunk takes 2 s
    proxy.bytes_per_s = 4 * MB
    with ResumingStream(place / "file") as stream:
        assert stream.readall() == content
    assert (place / "file").read_bytes() == content


def test_a_slow_table_takes_as_long_as_it_takes(proxy, place, tmp_path, deadline):
    table = pa.table({"a": [b"%07d" % number * 100 for number in range(6000)]})
    pq.write_table(table, tmp_path / "table", compression="none", use_dictionary=False)
    (place / "table").upload(tmp_path / "table")
    deadline(2)
    proxy.bytes_per_s = MB
    assert read_table(place / "table").equals(table)


def test_a_slow_listing_takes_as_long_as_it_takes(proxy, place, deadline, monkeypatch):
    names = [f"{number:02d}" for number in range(50)]
    for name in names:
        (place / "many" / name).write_bytes(b"")
    monkeypatch.setattr("landmark.storage.s3.PAGE_KEYS", 10)
    deadline(3)
    proxy.delay_s = 1.0
    assert (place / "many").walk() == names
    proxy.delay_s = 0.0
    (place / "many").delete()
    assert not (place / "many").exists()


def test_an_upload_that_stalls_goes_on_with_the_part_that_stalled(proxy, place, content, tmp_path, deadline):
    (tmp_path / "file").write_bytes(content)
    place.exists()  # the storage answered before: an outage is waited for
    proxy.stall_after, proxy.stalls = 3 * MB, 1
    deadline(3)
    (place / "file").upload(tmp_path / "file")
    assert proxy.stalled == 1 and proxy.bytes_up < 1.6 * SIZE
    assert (place / "file").read_bytes() == content


def test_an_outage_is_waited_for_where_the_storage_answered_before(
    proxy, place, content, tmp_path, deadline, monkeypatch, capfd
):
    (place / "small").write_text("x")
    deadline(2)
    monkeypatch.setattr("landmark.storage.retry.WARN_S", 2)
    proxy.bytes_per_s = 8 * MB
    (tmp_path / "file").write_bytes(content)
    for action in (
        lambda: (place / "file").upload(tmp_path / "file"),
        lambda: (place / "file").download(tmp_path / "copy"),
    ):
        begin = threading.Timer(0.4, lambda: proxy.outage(5))
        begin.start()
        action()
        begin.join()
    assert (tmp_path / "copy").read_bytes() == content
    assert "cannot reach the object storage" in capfd.readouterr().err
    proxy.go_away()
    monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "2")
    start = time.monotonic()
    with pytest.raises(TransientStorageError, match="cannot reach the object storage"):
        (place / "small").read_text()
    assert time.monotonic() - start > 0.5


def test_the_delay_of_a_far_bucket_costs_one_request_a_file(proxy, place):
    (place / "small").write_text("x")
    (place / "small").read_text()
    before, proxy.delay_s = proxy.requests, 0.2
    assert (place / "small").read_text() == "x"
    assert proxy.requests - before == 1


def test_work_that_resumes_is_begun_again_while_the_storage_is_gone(proxy, place, monkeypatch, capfd):
    (place / "x").write_text("found")
    monkeypatch.setattr("landmark.storage.retry._answered", set())  # as in a process that starts during the outage
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "1")
    monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "60")
    proxy.outage(5)
    assert resuming((place / "x").read_text) == "found"
    assert "cannot reach the object storage" in capfd.readouterr().err
    with pytest.raises(NotFound):
        resuming((place / "y").read_text)
    monkeypatch.setattr("landmark.storage.retry._answered", set())
    monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "2")
    proxy.go_away()
    with pytest.raises(TransientStorageError):
        resuming((place / "x").read_text)
    stopping = threading.Event()
    stopping.set()
    assert resuming((place / "x").read_text, stopping) is None


class Closing(socketserver.BaseRequestHandler):
    """Takes a request and closes the connection without an answer."""

    def handle(self) -> None:
        self.request.recv(65536)


@pytest.mark.parametrize(
    "request_",
    [
        requests.ObjectFile,
        lambda uri: requests.ObjectStream(uri, offset=1),
        requests.head,
        requests.has_bucket,
        lambda uri: requests.put_new(uri, b"x"),
        lambda uri: requests.end_parts(uri, "upload", [], 1),
        lambda uri: requests.list_page(uri, None, recursive=True),
    ],
    ids=["file", "stream", "head", "bucket", "new", "parts", "list"],
)
def test_a_connection_that_closes_without_an_answer_may_pass(request_, monkeypatch):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Closing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(ConnectionError, match="NETWORK_CONNECTION"):
            request_("s3://bucket/key")
        server.shutdown()
