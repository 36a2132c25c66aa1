"""Storage over a network: a real S3 server behind a proxy with delays, limits, stalls and outages."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from landmark.data.sources.resuming_stream import ResumingStream
from landmark.storage import Location, NotFound, TransientStorageError, locate, resuming, s3_objects
from landmark.storage import s3 as requests
from landmark.storage.tables import read_table
from tests.support.proxy import Proxy
from tests.support.seaweed import Seaweed

MB = 1 << 20
SIZE = 17 * MB
"""Large enough for a multipart upload of three parts."""


@pytest.fixture
def proxy(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3.ports[3]) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


@pytest.fixture(scope="module")
def content() -> bytes:
    return bytes(range(251)) * (SIZE // 251)


@pytest.fixture
def location(s3: Seaweed, tmp_path: Path) -> Location:
    return locate(s3.uri(f"network/{tmp_path.name}"))


@pytest.fixture
def deadline(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the deadline of an operation. An operation that is interrupted each time fails within 30 s."""

    def set_deadline(seconds: float) -> None:
        monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", str(seconds))
        monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "30")

    return set_deadline


def test_a_slow_transfer_does_not_time_out(proxy, location, content, tmp_path, deadline):
    (tmp_path / "file").write_bytes(content)
    proxy.bytes_per_s, proxy.delay_s = MB, 0.025
    deadline(4)  # a part of 8 MiB takes 8 s
    (location / "file").upload(tmp_path / "file")
    deadline(1.5)  # a chunk takes 2 s
    proxy.bytes_per_s = 4 * MB
    with ResumingStream(location / "file") as stream:
        assert stream.readall() == content
    assert (location / "file").read_bytes() == content


def test_reading_a_table_slowly_does_not_time_out(proxy, location, tmp_path, deadline):
    table = pa.table({"a": [b"%07d" % number * 100 for number in range(6000)]})
    pq.write_table(table, tmp_path / "table", compression="none", use_dictionary=False)
    (location / "table").upload(tmp_path / "table")
    deadline(2)
    proxy.bytes_per_s = MB
    assert read_table(location / "table").equals(table)


def test_a_slow_listing_does_not_time_out(proxy, location, deadline, monkeypatch):
    names = [f"{number:02d}" for number in range(50)]
    for name in names:
        (location / "many" / name).write_bytes(b"")
    monkeypatch.setattr("landmark.storage.s3.PAGE_KEYS", 10)
    deadline(3)
    proxy.delay_s = 1.0
    assert (location / "many").walk() == names
    proxy.delay_s = 0.0
    (location / "many").delete()
    assert not (location / "many").exists()


def test_a_stalled_upload_resumes_with_the_stalled_part(proxy, location, content, tmp_path, deadline):
    (tmp_path / "file").write_bytes(content)
    location.exists()  # After one response, the client waits for an outage to end.
    proxy.stall_after, proxy.stalls = 3 * MB, 1
    deadline(3)
    (location / "file").upload(tmp_path / "file")
    assert proxy.stalled == 1 and proxy.bytes_up < 1.6 * SIZE
    assert (location / "file").read_bytes() == content


def test_operations_wait_for_an_outage_to_end_after_an_earlier_response(
    proxy, location, content, tmp_path, deadline, monkeypatch, capfd
):
    (location / "small").write_text("x")
    deadline(2)
    monkeypatch.setattr("landmark.storage.retry.WARN_S", 2)
    proxy.bytes_per_s = 8 * MB
    (tmp_path / "file").write_bytes(content)
    for action in (
        lambda: (location / "file").upload(tmp_path / "file"),
        lambda: (location / "file").download(tmp_path / "copy"),
    ):
        begin = threading.Timer(0.4, lambda: proxy.outage(5))
        begin.start()
        action()
        begin.join()
    assert (tmp_path / "copy").read_bytes() == content
    assert "cannot reach the object storage" in capfd.readouterr().err
    proxy.start_outage()
    monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "2")
    start = time.monotonic()
    with pytest.raises(TransientStorageError, match="cannot reach the object storage"):
        (location / "small").read_text()
    assert time.monotonic() - start > 0.5


def test_reading_a_small_file_takes_one_request(proxy, location):
    (location / "small").write_text("x")
    (location / "small").read_text()
    before, proxy.delay_s = proxy.requests, 0.2
    assert (location / "small").read_text() == "x"
    assert proxy.requests - before == 1


def test_resumable_work_is_retried_during_an_outage(proxy, location, monkeypatch, capfd):
    (location / "x").write_text("found")
    monkeypatch.setattr("landmark.storage.retry._answered", set())  # as in a process that starts during the outage
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "1")
    monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "60")
    proxy.outage(5)
    assert resuming((location / "x").read_text) == "found"
    assert "cannot reach the object storage" in capfd.readouterr().err
    with pytest.raises(NotFound):
        resuming((location / "y").read_text)
    monkeypatch.setattr("landmark.storage.retry._answered", set())
    monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "2")
    proxy.start_outage()
    with pytest.raises(TransientStorageError):
        resuming((location / "x").read_text)
    stopping = threading.Event()
    stopping.set()
    assert resuming((location / "x").read_text, stopping) is None


class Closing(socketserver.BaseRequestHandler):
    """Receives a request and closes the connection without a response."""

    def handle(self) -> None:
        self.request.recv(65536)


@pytest.mark.parametrize(
    "request_",
    [
        s3_objects.ObjectFile,
        lambda uri: s3_objects.ObjectStream(uri, offset=1),
        requests.head,
        requests.has_bucket,
        lambda uri: requests.put_new(uri, b"x"),
        lambda uri: requests.end_parts(uri, "upload", [], 1),
        lambda uri: requests.list_page(uri, None, recursive=True),
    ],
    ids=["file", "stream", "head", "bucket", "new", "parts", "list"],
)
def test_a_connection_closed_without_a_response_is_retryable(request_, monkeypatch):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Closing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(ConnectionError, match="NETWORK_CONNECTION"):
            request_("s3://bucket/key")
        server.shutdown()
