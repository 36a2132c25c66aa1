"""Storage: whole files or none, the same behaviour on disk and on S3, mistakes in one line."""

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
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return locate(tmp_path)
    server: Seaweed = request.getfixturevalue("s3")
    return locate(server.uri(f"storage/{tmp_path.name}"))


def test_files_are_written_listed_copied_and_deleted(place: Location, tmp_path: Path):
    (place / "a/b.txt").write_text("grüße")
    (place / "a/c/d.bin").write_bytes(b"\0\1")
    (place / "e").write_bytes(b"")
    assert (place / "a/b.txt").read_text() == "grüße"
    assert place.walk() == ["a/b.txt", "a/c/d.bin", "e"]
    assert (place / "a").names() == ["b.txt", "c"]
    assert (place / "a").exists() and (place / "e").exists() and not (place / "x").exists()
    (place / "a/b.txt").download(tmp_path / "copy")
    (place / "f").upload(tmp_path / "copy")
    assert (place / "f").read_text() == "grüße"
    (place / "a").delete()
    (place / "not there").delete()
    assert "a/b.txt" not in place.walk()
    check_writable(place)


def test_what_is_not_there_is_named(place: Location):
    for action in (lambda p: p.read_bytes(), lambda p: p.open_input(), lambda p: p.names()):
        with pytest.raises(NotFound, match=f"{place.uri}/none: no such file or folder"):
            action(place / "none")


def test_a_text_file_that_is_damaged_is_named(place: Location):
    (place / "record.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(PermanentStorageError, match=r"record\.json: byte 7 is not UTF-8 text, so the file is corrupt"):
        (place / "record.json").read_text()


def test_an_unwritable_place_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentStorageError, match="file/below: Not a directory|file/below"):
        (locate(tmp_path) / "file/below/x").write_text("")


def test_a_pickle_carries_no_credentials(s3: Seaweed):
    location = locate(s3.uri("x"))
    location.exists()
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in pickle.dumps(location)


def test_wrong_secret_missing_bucket_and_read_only_are_told_apart(s3: Seaweed, monkeypatch: pytest.MonkeyPatch):
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


def test_a_server_that_is_not_there_is_an_error_after_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "1")
    with pytest.raises(TransientStorageError, match=r"cannot reach the object storage at http://127\.0\.0\.1:9"):
        locate("s3://bucket/x").read_bytes()


class Throttle(ThreadingHTTPServer):
    """Stands before a server and answers the first requests as object storage does that is asked too often."""

    def __init__(self, behind: int, refusals: int) -> None:
        super().__init__(("127.0.0.1", 0), _ThrottleHandler)
        self.behind, self.refusals, self.refused = behind, refusals, 0


class _ThrottleHandler(BaseHTTPRequestHandler):
    server: Throttle
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.server.refused < self.server.refusals:
            self.server.refused += 1
            self.answer(503, {}, b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind)
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
def test_throttling_is_backed_off_until_the_deadline(s3: Seaweed, monkeypatch: pytest.MonkeyPatch, refusals: int):
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
    place = locate(s3.uri("frozen"))
    place.write_text("x")
    (tmp_path / "file").write_bytes(b"y" * 1000)
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "2")
    s3.freeze()
    try:
        start = time.monotonic()
        with pytest.raises(TransientStorageError, match=r"frozen: no response for 2 s from the object storage at http"):
            {
                "read": place.read_bytes,
                "write": lambda: place.write_text("z"),
                "upload": lambda: place.upload(tmp_path / "file"),
            }[action]()
        assert time.monotonic() - start < 30
    finally:
        s3.thaw()
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "60")
    place.write_text("again")
    assert place.read_text() == "again"


def test_an_operation_that_goes_on_is_never_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LANDMARK_STORAGE_DEADLINE_S", "0.5")

    def slow(beats: int) -> str:
        for _ in range(beats):
            time.sleep(0.2)
            alive()
        return "done"

    assert retrying("s3://bucket/x", lambda: slow(6)) == "done"
    with pytest.raises(TransientStorageError, match="no response for 0.5 s"):
        retrying("s3://bucket/x", lambda: time.sleep(3))


def test_s3_without_a_bucket_is_refused():
    with pytest.raises(UserError, match="no bucket"):
        locate("s3:///x").exists()


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path):
    target = tmp_path / "file"
    target.write_bytes(b"o" * 1000)
    code = (
        "import sys; from landmark.storage import locate\n"
        f"for i in range(100000): locate({str(target)!r}).write_bytes(bytes([97 + i % 26]) * 3_000_000); print(i, flush=True)"
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
    ("text", "kind", "line"),
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
def test_the_words_of_clients_name_the_cause(text, kind, line):
    with pytest.raises(kind, match=line):
        raise storage_error("s3://b/x", OSError(f"AWS Error {text}"))


class Refusing(ThreadingHTTPServer):
    """Refuses every request as S3 does, with one reason."""

    def __init__(self, status: int, headers: dict[str, str], body: str) -> None:
        super().__init__(("127.0.0.1", 0), _RefusingHandler)
        self.answer = status, headers, body


class _RefusingHandler(_ThrottleHandler):
    server: Refusing

    def do_GET(self) -> None:
        status, headers, body = self.server.answer
        self.answer(status, headers, b"" if self.command == "HEAD" else body.encode())


@pytest.mark.parametrize(
    ("status", "headers", "body", "line"),
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
def test_expired_credentials_and_a_wrong_region_are_named(monkeypatch, status, headers, body, line):
    with Refusing(status, headers, body) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        place = locate("s3://bucket/folder")
        for action in (place.exists, place.names, place.read_bytes, place.open_input, lambda: check_writable(place)):
            with pytest.raises(UserError, match=line):
                action()
        server.shutdown()
