"""Ranges of files: the bytes that a reader needs, in one request each, which continues after a broken connection."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
    """Return bytes [start, stop) of a file, see `read_into`."""
    data = bytearray(stop - start)
    read_into(location, start, memoryview(data), version)
    return bytes(data)


def read_into(location: Location, start: int, memory: memoryview, version: str | None) -> None:
    """Read the bytes of a file from `start` until `memory` is full, with one request.

    After a broken connection, it continues at the same byte. version: from `read_tail`. Raises FileReplaced if the file
    has another version or ends earlier. Raises a StorageError if the storage fails.
    """
    done = 0

    def read() -> None:
        nonlocal done
        stream = _open(location, start + done, start + len(memory), version)
        try:
            while done < len(memory) and (count := stream.readinto(memory[done : done + READ_BYTES])):
                done += count
                alive()
        finally:
            stream.close()
        if done < len(memory):
            raise FileReplaced(f"{location}: ends at byte {start + done:,}, before byte {start + len(memory):,}")

    retrying(location.uri, read)


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


class _Source(Protocol):
    """A file that is read from an offset."""

    def readinto(self, memory: memoryview) -> int:
        """Fill the memory with the next bytes. Returns their number, 0 at the end."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def _open(location: Location, start: int, stop: int, version: str | None) -> _Source:
    local = location.local_path()
    if local is not None:
        return _local_file(local, start, version)
    if not location.is_s3:
        return _Copied(location.open_stream(start))
    try:
        return _Copied(s3_objects.ObjectStream(location.uri, start, version, stop))
    except s3.FileChanged:
        raise FileReplaced(f"{location}: was replaced") from None


class _Copied:
    """A stream of bytes, which are copied."""

    def __init__(self, stream: transfer.Stream) -> None:
        self._stream = stream
        self.close = stream.close

    def readinto(self, memory: memoryview) -> int:
        data = self._stream.read(len(memory))
        memory[: len(data)] = data
        return len(data)


def _local_file(path: Path, offset: int, version: str | None) -> _Source:
    """Open a file on this machine at an offset."""
    file = path.open("rb", buffering=0)
    if version != _version(os.fstat(file.fileno())):
        file.close()
        raise FileReplaced(f"{path}: was replaced")
    file.seek(offset)
    return file


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
