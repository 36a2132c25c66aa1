"""Ranges of files: the bytes that a reader needs, in one request each, which continues after a broken connection."""

import os
from dataclasses import dataclass
from pathlib import Path

from landmark.storage import s3, s3_objects, transfer
from landmark.storage.location import Location
from landmark.storage.retry import alive, retrying

READ_BYTES = 1 << 20
"""Bytes per read of a connection. Each read counts as progress."""


class FileReplaced(Exception):
    """A file that is not the one that its tail was read from: it was replaced or truncated."""


@dataclass(frozen=True)
class Tail:
    """The end of a file."""

    data: bytes
    size: int
    """Size of the complete file, bytes."""
    version: str | None
    """Version of the file. None if the storage does not report it."""


def read_tail(location: Location, count: int) -> Tail:
    """Return up to the last `count` bytes of a file. Raises NotFound or another StorageError."""
    return retrying(location.uri, lambda: _tail(location, count))


def read_range(location: Location, start: int, stop: int, version: str | None) -> bytes:
    """Return bytes [start, stop) of a file with one request. After a broken connection, it continues at the same byte.

    version: from `read_tail`. Raises FileReplaced if the file has another version or ends earlier. Raises a
    StorageError if the storage fails.
    """
    parts: list[bytes] = []

    def read() -> None:
        position = start + sum(map(len, parts))
        stream = _open(location, position, stop, version)
        try:
            while position < stop and (part := stream.read(min(READ_BYTES, stop - position))):
                parts.append(part)
                position += len(part)
                alive()
        finally:
            stream.close()
        if position < stop:
            raise FileReplaced(f"{location}: ends at byte {position:,}, before byte {stop:,}")

    retrying(location.uri, read)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _tail(location: Location, count: int) -> Tail:
    local = location.local_path()
    if location.is_s3:
        found = s3_objects.ObjectTail(location.uri, count)
        return Tail(data=found.data, size=found.size, version=found.etag)
    if local is not None:
        with local.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            data = os.pread(file.fileno(), count, max(0, status.st_size - count))
        return Tail(data=data, size=status.st_size, version=_version(status))
    stream = location.open_stream(0)
    size = stream.size or 0
    stream.close()
    stream = location.open_stream(max(0, size - count))
    with_tail = Tail(data=stream.read(count), size=size, version=None)
    stream.close()
    return with_tail


def _open(location: Location, start: int, stop: int, version: str | None) -> transfer.Stream:
    local = location.local_path()
    if local is not None:
        return _LocalFile(local, start, version)
    if not location.is_s3:
        return location.open_stream(start)
    try:
        return s3_objects.ObjectStream(location.uri, start, version, stop)
    except s3.FileChanged:
        raise FileReplaced(f"{location}: was replaced") from None


class _LocalFile:
    """A file on this machine, read from an offset."""

    etag: str | None = None

    def __init__(self, path: Path, offset: int, version: str | None) -> None:
        self._file = path.open("rb", buffering=0)
        status = os.fstat(self._file.fileno())
        self.size: int | None = status.st_size
        if version != _version(status):
            self._file.close()
            raise FileReplaced(f"{path}: was replaced")
        self._file.seek(offset)

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes, none at the end."""
        return self._file.read(count)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
