"""Storage: atomic writes, the same behavior on disk and on S3, and one-line errors."""

import http.client
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from landmark.config import UserError
from landmark.storage import (
    Location,
    NotFound,
    PermanentStorageError,
    TransientStorageError,
    alive,
    check_writable,
    locate,
    retrying,
    storage_error,
)
from tests.support.seaweed import Seaweed


@pytest.fixture(params=["disk", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return locate(tmp_path)
    server: Seaweed = request.getfixturevalue("s3")
    return locate(server.uri(f"storage/{tmp_path.name}"))


def test_files_are_written_listed_copied_and_deleted(location: Location, tmp_path: Path):
    (location / "a/b.txt").write_text("grüße")
    (location / "a/c/d.bin").write_bytes(b"\0\1")
    (location / "e").write_bytes(b"")
    assert (location / "a/b.txt").read_text() == "grüße"
    assert location.walk() == ["a/b.txt", "a/c/d.bin", "e"]
    assert (location / "a").names() == ["b.txt", "c"]
    assert (location / "a").exists() and (location / "e").exists() and not (location / "x").exists()
    (location / "a/b.txt").download(tmp_path / "copy")
    (location / "f").upload(tmp_path / "copy")
    assert (location / "f").read_text() == "grüße"
    (location / "a").delete()
    (location / "not there").delete()
    assert "a/b.txt" not in location.walk()
    check_writable(location)


def test_a_missing_file_is_an_error_with_its_path(location: Location):
    for action in (lambda p: p.read_bytes(), lambda p: p.open_input(), lambda p: p.names()):
        with pytest.raises(NotFound, match=f"{location.uri}/none: no such file or folder"):
            action(location / "none")


def test_a_corrupt_text_file_is_an_error_with_its_path(location: Location):
    (location / "record.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(PermanentStorageError, match=r"record\.json: byte 7 is not UTF-8 text, so the file is corrupt"):
        (location / "record.json").read_text()


def test_an_unwritable_location_is_an_error_with_its_path(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentStorageError, match="file/below: Not a directory|file/below"):
        (locate(tmp_path) / "file/below/x").write_text("")


def test_a_pickle_contains_no_credentials(s3: Seaweed):
    location = locate(s3.uri("x"))
    location.exists()
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in pickle.dumps(location)


def test_wrong_secret_missing_bucket_and_read_only_are_distinguished(s3: Seaweed, monkeypatch: pytest.MonkeyPatch):
    (locate(s3.uri("given"))).write_text("x")
    with pytest.raises(PermanentStorageError, match="no such bucket|no such file"):
        locate("s3://no-such-bucket-here/x").read_bytes()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "read-only")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "read-only-secret")
    assert locate(s3.uri("given")).read_text() == "x"
    with pytest.raises(UserError, match="access denied; check AWS_ACCESS_KEY_ID"):
        check_writable(locate(s3.uri("denied")))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermanentStorageError, match="access denied; check AWS_ACCESS_KEY_ID") as error:
        locate(s3.uri("given")).read_bytes()
    assert "\n" not in str(error.value)


def test_an_unreachable_server_is_an_error_after_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "1")
    with pytest.raises(TransientStorageError, match=r"cannot reach the object storage at http://127\.0\.0\.1:9"):
        locate("s3://bucket/x").read_bytes()


class Throttle(ThreadingHTTPServer):
    """A proxy that answers the first requests with 503 SlowDown, like overloaded object storage."""

    def __init__(self, upstream_port: int, refusals: int) -> None:
        super().__init__(("127.0.0.1", 0), _ThrottleHandler)
        self.upstream_port, self.refusals, self.refused = upstream_port, refusals, 0


class _ThrottleHandler(BaseHTTPRequestHandler):
    server: Throttle
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.server.refused < self.server.refusals:
            self.server.refused += 1
            self.answer(503, {}, b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port)
        connection.request(self.command, self.path, headers=dict(self.headers))
        found = connection.getresponse()
        self.answer(found.status, dict(found.getheaders()), found.read())

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("refusals", [5, 10_000])
def test_throttled_requests_are_retried_until_the_deadline(s3: Seaweed, monkeypatch: pytest.MonkeyPatch, refusals: int):
    (locate(s3.uri("throttled"))).write_text("x")
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "60" if refusals < 100 else "2")
    with Throttle(s3.ports[3], refusals) as throttle:
        threading.Thread(target=throttle.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{throttle.server_port}")
        if refusals < 100:
            assert locate(s3.uri("throttled")).read_text() == "x"
            assert throttle.refused == refusals
        else:
            with pytest.raises(TransientStorageError, match="too many requests|object storage .* is busy"):
                locate(s3.uri("throttled")).read_text()
            assert throttle.refused < 60
        throttle.shutdown()


@pytest.mark.parametrize("action", ["read", "write", "upload"])
def test_a_frozen_server_is_an_error_at_the_deadline(s3: Seaweed, monkeypatch: pytest.MonkeyPatch, tmp_path, action):
    location = locate(s3.uri("frozen"))
    location.write_text("x")
    (tmp_path / "file").write_bytes(b"y" * 1000)
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "2")
    s3.freeze()
    try:
        start = time.monotonic()
        with pytest.raises(TransientStorageError, match=r"frozen: no response for 2 s from the object storage at http"):
            {
                "read": location.read_bytes,
                "write": lambda: location.write_text("z"),
                "upload": lambda: location.upload(tmp_path / "file"),
            }[action]()
        assert time.monotonic() - start < 30
    finally:
        s3.thaw()
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "60")
    location.write_text("again")
    assert location.read_text() == "again"


def test_an_operation_that_makes_progress_never_times_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "0.5")

    def slow(beats: int) -> str:
        for _ in range(beats):
            time.sleep(0.2)
            alive()
        return "done"

    assert retrying("s3://bucket/x", lambda: slow(6)) == "done"
    with pytest.raises(TransientStorageError, match="no response for 0.5 s"):
        retrying("s3://bucket/x", lambda: time.sleep(3))


def test_an_s3_uri_without_a_bucket_is_an_error():
    with pytest.raises(UserError, match="no bucket"):
        locate("s3:///x").exists()


def test_a_killed_writer_leaves_the_old_file_intact(tmp_path: Path):
    target = tmp_path / "file"
    target.write_bytes(b"o" * 1000)
    code = (
        "import sys; from landmark.storage import locate\n"
        f"for i in range(100000): locate({str(target)!r}).write_bytes(bytes([97 + i % 26]) * 3_000_000); "
        "print(i, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent.parent
    ) as writer:
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        for _ in range(50):
            data = target.read_bytes()
            assert len(data) == 3_000_000 and len(set(data)) == 1
            time.sleep(0.002)
        writer.send_signal(signal.SIGKILL)
    data = target.read_bytes()
    assert len(data) == 3_000_000 and len(set(data)) == 1


@pytest.mark.parametrize(
    ("text", "error_type", "message"),
    [
        (
            "ExpiredToken (HTTP status 400): The provided token has expired.",
            PermanentStorageError,
            "credentials have expired",
        ),
        (
            "AuthorizationHeaderMalformed (HTTP status 400): the region 'us-east-1' is wrong; expecting 'eu-west-3'",
            PermanentStorageError,
            r"in the region eu-west-3, not in us-east-1; set AWS_REGION=eu-west-3",
        ),
        (
            "UNKNOWN (HTTP status 301) during GetObject operation",
            PermanentStorageError,
            "another region than us-east-1",
        ),
        (
            "UNKNOWN (HTTP status 400) during HeadObject operation: No response body.",
            PermanentStorageError,
            "AWS_SESSION_TOKEN",
        ),
        ("InternalError (HTTP status 500): We encountered an internal error", TransientStorageError, "failed"),
    ],
)
def test_client_errors_are_mapped_to_their_cause(text, error_type, message):
    with pytest.raises(error_type, match=message):
        raise storage_error("s3://b/x", OSError(f"AWS Error {text}"))


class Refusing(ThreadingHTTPServer):
    """A server that rejects every request with one reason, like S3."""

    def __init__(self, status: int, headers: dict[str, str], body: str) -> None:
        super().__init__(("127.0.0.1", 0), _RefusingHandler)
        self.answer = status, headers, body


class _RefusingHandler(_ThrottleHandler):
    server: Refusing

    def do_GET(self) -> None:
        status, headers, body = self.server.answer
        self.answer(status, headers, b"" if self.command == "HEAD" else body.encode())


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (
            400,
            {},
            "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
            "the credentials have expired; renew AWS_ACCESS_KEY_ID",
        ),
        (
            301,
            {"x-amz-bucket-region": "eu-west-3"},
            "<Error><Code>PermanentRedirect</Code><Message>Another endpoint.</Message></Error>",
            "the bucket is in the region eu-west-3, not in us-east-1; set AWS_REGION=eu-west-3",
        ),
    ],
)
def test_expired_credentials_and_a_wrong_region_are_reported(monkeypatch, status, headers, body, message):
    with Refusing(status, headers, body) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        location = locate("s3://bucket/folder")
        for action in (
            location.exists,
            location.names,
            location.read_bytes,
            location.open_input,
            lambda: check_writable(location),
        ):
            with pytest.raises(UserError, match=message):
                action()
        server.shutdown()
