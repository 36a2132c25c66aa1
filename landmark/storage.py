"""Places that hold files: a URI becomes a filesystem, files appear whole or not at all."""

import contextlib
import functools
import hashlib
import io
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from landmark.config import UserError

T = TypeVar("T")

CHUNK_BYTES = 16 << 20
CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 15
DEADLINE_S = 90
"""Seconds for which object storage may fail or not answer before that is an error; LANDMARK_STORAGE_DEADLINE_S overrides it."""
LONGEST_PAUSE_S = 8
DENIED = "access denied"

_TRANSIENT = (
    "NETWORK_CONNECTION",
    "curlCode",
    "SLOW_DOWN",
    "SlowDown",
    "THROTTLING",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "REQUEST_TIMEOUT",
    "REQUEST_EXPIRED",
    "REQUEST_TIME_TOO_SKEWED",
    "HTTP status 50",
    "Could not connect",
    "timed out",
    "Connection reset",
)


class NotFound(UserError):
    """A file or folder that does not exist."""


@dataclass(frozen=True)
class Location:
    """A file or folder in a local folder or in object storage.

    Holds the URI alone, so that a pickle of it carries no credentials: each process opens the
    filesystem for itself, with the credentials of its own environment. S3 takes its endpoint from
    AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL and its region from AWS_REGION or AWS_DEFAULT_REGION.
    """

    uri: str

    @property
    def fs(self) -> pafs.FileSystem:
        """The pyarrow filesystem."""
        return _open(self.uri)[0]

    @property
    def path(self) -> str:
        """The path within `fs`: for S3 `bucket/key`."""
        return _open(self.uri)[1]

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    def local_path(self) -> Path | None:
        """Return the path on this machine's disk, or None for object storage."""
        return Path(self.path) if isinstance(self.fs, pafs.LocalFileSystem) else None

    def exists(self) -> bool:
        """Return whether there is a file or folder here."""
        return retrying(self.uri, lambda: self.fs.get_file_info(self.path).type != pafs.FileType.NotFound)

    def open_input(self) -> pa.NativeFile:
        """Open the file for random access."""
        return retrying(self.uri, lambda: self.fs.open_input_file(self.path))

    def read_bytes(self) -> bytes:
        """Return the file's bytes."""

        def read() -> bytes:
            buffer = io.BytesIO()
            self._copy_to(buffer.write)
            return buffer.getvalue()

        return retrying(self.uri, read)

    def sha256(self) -> tuple[str, int]:
        """Return the file's SHA-256 in hexadecimal and its size, reading it as a stream."""

        def read() -> tuple[str, int]:
            digest = hashlib.sha256()
            size = self._copy_to(digest.update)
            return digest.hexdigest(), size

        return retrying(self.uri, read)

    def _copy_to(self, take: Callable[[bytes], object]) -> int:
        """Hand the file's bytes to `take`, chunk by chunk; returns their number."""
        size = 0
        with self.fs.open_input_stream(self.path) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                take(chunk)
                size += len(chunk)
                alive()
        return size

    def read_text(self) -> str:
        """Return the file's text (UTF-8)."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """Publish a file with these bytes: a reader sees the old file or the whole new one."""

        def write() -> None:
            local = self.local_path()
            if local is None:
                with self.fs.open_output_stream(self.path) as stream:
                    stream.write(data)
            else:
                with _replaced(local) as temporary:
                    temporary.write_bytes(data)

        retrying(self.uri, write)

    def write_text(self, text: str) -> None:
        """Publish a file with this text (UTF-8)."""
        self.write_bytes(text.encode())

    def upload(self, source: Path) -> None:
        """Publish a copy of a local file."""

        def copy() -> None:
            local = self.local_path()
            if local is None:
                with source.open("rb") as reader, self.fs.open_output_stream(self.path) as stream:
                    while chunk := reader.read(CHUNK_BYTES):
                        stream.write(chunk)
                        alive()
            else:
                with _replaced(local) as temporary:
                    shutil.copyfile(source, temporary)

        retrying(self.uri, copy)

    def download(self, target: Path) -> None:
        """Copy the file to a local path."""

        def copy() -> None:
            with target.open("wb") as writer:
                self._copy_to(writer.write)

        retrying(self.uri, copy)

    def names(self) -> list[str]:
        """Return the sorted names of the files and folders directly below."""
        return self._names(recursive=False)

    def walk(self) -> list[str]:
        """Return the sorted paths, relative to here, of all files below."""
        return self._names(recursive=True)

    def infos(self, *, recursive: bool) -> list[pafs.FileInfo]:
        """Return what is known of the files and folders below; raises NotFound where there is no folder."""
        selector = pafs.FileSelector(self.path, recursive=recursive)
        return retrying(self.uri, lambda: self.fs.get_file_info(selector))

    def _names(self, *, recursive: bool) -> list[str]:
        start = len(self.path.rstrip("/")) + 1
        infos = self.infos(recursive=recursive)
        return sorted(info.path[start:] for info in infos if not recursive or info.type == pafs.FileType.File)

    def delete(self) -> None:
        """Delete the file, or the folder with all below it; nothing happens where there is none."""

        def remove() -> None:
            kind = self.fs.get_file_info(self.path).type
            if kind == pafs.FileType.File:
                self.fs.delete_file(self.path)
            elif kind == pafs.FileType.Directory:
                self.fs.delete_dir(self.path)

        retrying(self.uri, remove)


def locate(uri: str | Path) -> Location:
    """Return the location of a path or URI: a local path, file://, s3://, or any scheme of fsspec."""
    text = os.path.expanduser(str(uri))
    return Location(text if "://" in text else os.path.abspath(text))


def check_writable(location: Location) -> None:
    """Write and delete a small file, so that an unwritable place is an error before the work, not after.

    Some servers create a bucket that is written to; a bucket that is not there is an error all the same.
    """
    if lacks_bucket(location):
        raise UserError(f"{location}: no such bucket; create it or check its name")
    probe = location / f".landmark-write-check-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"")
        probe.delete()
    except UserError as error:
        reason = "no such folder; check the path" if isinstance(error, NotFound) else _told(error, probe)
        raise UserError(f"{location}: cannot be written to: {reason}") from None


def _told(error: UserError, location: Location) -> str:
    """Return what an error says of a location."""
    return str(error).removeprefix(f"{location}: ")


def lacks_bucket(location: Location) -> bool:
    """Return whether a location is in an S3 bucket that does not exist; False where the credentials may not know."""
    parts = urlsplit(location.uri)
    if parts.scheme != "s3" or not parts.netloc:
        return False
    try:
        return not Location(f"s3://{parts.netloc}").exists()
    except UserError as error:
        if DENIED in str(error):
            return False
        raise


def _open(uri: str) -> tuple[pafs.FileSystem, str]:
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return _local(), parts.path if parts.scheme else uri
    if parts.scheme == "s3":
        if not parts.netloc:
            raise UserError(f"{uri}: no bucket; expected s3://bucket/key")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
        credentials = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
        filesystem = _s3(endpoint, region, hash(credentials), "" if endpoint or region else parts.netloc)
        return filesystem, (parts.netloc + parts.path).rstrip("/")
    return _fsspec(uri)


@functools.cache
def _local() -> pafs.LocalFileSystem:
    return pafs.LocalFileSystem()


@functools.lru_cache(maxsize=16)
def _s3(endpoint: str, region: str, credentials: int, bucket: str) -> pafs.S3FileSystem:
    """Open S3; `credentials` only tells apart environments, the client reads them by itself."""
    known = region or "us-east-1"
    if bucket:
        known = retrying(f"s3://{bucket}", lambda: pafs.resolve_s3_region(bucket))
    options = {
        "region": known,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=2),
    }
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host, "scheme": scheme or "https"}
    return pafs.S3FileSystem(**options)


def _fsspec(uri: str) -> tuple[pafs.FileSystem, str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{uri}: {error}; expected a path, s3://… or a scheme whose fsspec package is installed"
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def retrying(uri: str, operation: Callable[[], T]) -> T:
    """Run an operation on storage that may be repeated; returns its result.

    Failures that pass (throttling, a server that restarts) are tried again, with growing pauses, until the
    deadline after the first one. An operation on object storage that gives no sign of life for as long (see `alive`)
    is given up, whatever its client's own time-outs. Raises NotFound, or UserError with one line that names the
    place and the mend.
    """
    patience = float(os.environ.get("LANDMARK_STORAGE_DEADLINE_S", DEADLINE_S))
    run = operation if urlsplit(uri).scheme in ("", "file") else functools.partial(_watched, operation, patience)
    deadline, pause = None, 0.25
    while True:
        try:
            return run()
        except FileNotFoundError:
            raise NotFound(f"{uri}: no such file or folder; check the path") from None
        except OSError as error:
            now = time.monotonic()
            deadline = now + patience if deadline is None else deadline
            if not _passes(error) or now + pause > deadline:
                raise UserError(f"{uri}: {_reason(error)}") from error
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_S)


class Unanswered(OSError):
    """Object storage gave no sign of life until the deadline."""


_watch = threading.local()
_left_behind: list["_Call"] = []


def alive() -> None:
    """Say that the operation under way got something done: its deadline counts from now."""
    if (call := getattr(_watch, "call", None)) is not None:
        call.seen = time.monotonic()


class _Call(threading.Thread):
    """An operation in a thread of its own, so that it can be left behind when it hangs."""

    def __init__(self, operation: Callable[[], Any]) -> None:
        super().__init__(name="landmark-storage", daemon=True)
        self.operation = operation
        self.seen = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        _watch.call = self
        try:
            self.result = self.operation()
        except BaseException as error:  # raised again by the thread that waits
            self.error = error


def _watched(operation: Callable[[], T], patience: float) -> T:
    """Run an operation, but give it up after `patience` seconds without a sign of life."""
    call = _Call(operation)
    call.start()
    while call.is_alive():
        left = call.seen + patience - time.monotonic()
        if left <= 0:
            _left_behind.append(call)
            raise Unanswered(f"no answer for {patience:g} s")
        call.join(left)
    if call.error is not None:
        raise call.error
    return call.result


def hanging() -> bool:
    """Return whether an operation that was given up still hangs; the end of the process would wait for it."""
    return any(call.is_alive() for call in _left_behind)


def _passes(error: OSError) -> bool:
    """Return whether a failure is of the kind that passes: never one of the local disk."""
    if isinstance(error, Unanswered):
        return False
    return error.errno is None and any(word in str(error) for word in _TRANSIENT)


def _reason(error: OSError) -> str:
    text = str(error)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    if isinstance(error, Unanswered):
        return f"{text} from the object storage at {endpoint}; check that the server runs, then run the same again"
    denied = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "InvalidAccessKeyId", "Forbidden")
    if any(word in text for word in denied):
        return f"{DENIED}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's permissions"
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text or "Bucket does not exist" in text:
        return "no such bucket; create it or check its name"
    if any(word in text for word in ("SLOW_DOWN", "SlowDown", "THROTTLING", "SERVICE_UNAVAILABLE", "HTTP status 503")):
        return f"the object storage at {endpoint} is busy (it answers with 503 or SlowDown); run the same again later"
    if "NETWORK_CONNECTION" in text or "curlCode" in text or "Connection" in text:
        return f"cannot reach the object storage at {endpoint}; check AWS_ENDPOINT_URL and that the server runs"
    return f"{error.strerror or text.splitlines()[0]}; check the path and its permissions"
