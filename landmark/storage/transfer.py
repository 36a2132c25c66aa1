"""Transfers in parts with separate retries, so that a broken connection costs one part, and paginated listings."""

import contextlib
import functools
import io
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from landmark.storage import s3, s3_objects
from landmark.storage.errors import TransientStorageError
from landmark.storage.filesystem import FileStream
from landmark.storage.retry import alive, retrying
from landmark.storage.uri import scheme_of

T = TypeVar("T")

CHUNK_BYTES = 8 << 20
"""Bytes per read."""
PART_BYTES = 8 << 20
MAX_PARTS = 10_000
AT_A_TIME = 4
"""Concurrent parts of one upload."""


class Body(io.RawIOBase):
    """Bytes to send. Each block that the connection accepts counts as progress."""

    def __init__(self, source: Any, start: int, size: int) -> None:
        """source: a file opened for reading. `size` bytes from `start` are sent."""
        self.source, self.start, self.size = source, start, size
        self.position = 0

    def __len__(self) -> int:
        return self.size

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position within these bytes."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position within these bytes."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes. The connection has accepted the previous ones."""
        left = self.size - self.position
        self.source.seek(self.start + self.position)
        data = self.source.read(left if count is None or count < 0 else min(count, left))
        self.position += len(data)
        alive()
        return data


Opener = Callable[[], Any]
"""Opens the bytes to send. Each part opens them separately."""


def upload(uri: str, opener: Opener, size: int) -> None:
    """Store `size` bytes as one object, atomically."""
    if size <= 2 * PART_BYTES:
        retrying(uri, lambda: _send(opener, 0, size, functools.partial(s3.put, uri)))
        return
    part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
    starts = range(0, size, part_bytes)
    identity = retrying(uri, lambda: s3.begin_parts(uri))

    def send(number: int) -> dict[str, Any]:
        start = starts[number - 1]
        put = functools.partial(s3.put_part, uri, identity, number)
        return retrying(uri, lambda: _send(opener, start, min(part_bytes, size - start), put))

    try:
        parts = _side_by_side(send, range(1, len(starts) + 1))
        retrying(uri, lambda: s3.end_parts(uri, identity, parts, size))
    except BaseException:
        with contextlib.suppress(OSError):
            s3.abort_parts(uri, identity)
        raise


def _side_by_side(function: Callable[[int], T], numbers: Iterable[int]) -> list[T]:
    """Return the function's results in order, with several concurrent calls. The first error stops the others without
    waiting for them.

    This is not a ThreadPoolExecutor, because the end of the process would wait for its threads, and an outage may be
    long.
    """
    left, lock = iter(numbers), threading.Lock()
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    results: dict[int, T] = {}
    stopped = threading.Event()

    def work() -> None:
        try:
            while not stopped.is_set():
                with lock:
                    number = next(left, None)
                if number is None:
                    break
                results[number] = function(number)
            done.put(None)
        except BaseException as error:  # the waiting thread raises it again
            done.put(error)

    threads = [threading.Thread(target=work, name="landmark-upload", daemon=True) for _ in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            if (error := done.get()) is not None:
                raise error
    finally:
        stopped.set()
    return [results[number] for number in sorted(results)]


def _send(opener: Opener, start: int, size: int, put: Callable[[Body], Any]) -> Any:
    with opener() as source:
        return put(Body(source, start, size))


def upload_bytes(uri: str, data: bytes) -> None:
    """Store these bytes."""
    upload(uri, lambda: io.BytesIO(data), len(data))


def upload_file(uri: str, path: Path) -> None:
    """Store a copy of a local file."""
    upload(uri, lambda: path.open("rb"), path.stat().st_size)


class Stream(Protocol):
    """A file that is read from an offset."""

    size: int | None
    """Size of the complete file, bytes."""
    etag: str | None
    """Version of the file, if the storage reports it."""

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes, none at the end."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_stream(uri: str, offset: int = 0, etag: str | None = None) -> Stream:
    """Open a file for reading from an offset, inside an operation of `retrying`."""
    return s3_objects.ObjectStream(uri, offset, etag) if scheme_of(uri) == "s3" else FileStream(uri, offset)


def chunks(uri: str) -> Iterator[bytes]:
    """Yield a file's bytes. After a broken connection, reading resumes at the same offset."""
    stream: Stream | None = None
    position, etag = 0, None

    def drop() -> None:
        nonlocal stream
        if stream is not None:
            stream.close()
        stream = None

    def read() -> bytes | None:
        nonlocal stream, etag
        try:
            if stream is None:
                stream = open_stream(uri, position, etag)
                etag = stream.etag
            return stream.read(CHUNK_BYTES)
        except s3.FileChanged:
            return None
        except OSError:
            drop()
            raise

    try:
        while chunk := retrying(uri, read):
            position += len(chunk)
            yield chunk
        if chunk is None:
            raise TransientStorageError(f"{uri}: changed while it was read; run the same command again")
    finally:
        drop()


def entries(uri: str, *, recursive: bool) -> dict[str, s3.Entry]:
    """Return the entries below a folder, by key. Raises NotFound if the folder does not exist.

    A recursive listing also contains the folders in between.
    """
    key = s3.split_s3(uri)[1]
    found: dict[str, s3.Entry] = {}
    token, seen = None, False
    while True:
        page = retrying(uri, functools.partial(s3.list_page, uri, token, recursive=recursive))
        for entry in page.entries:
            seen = True
            if entry.key != key and (entry.is_file or entry.key not in found):
                found[entry.key] = entry
        token = page.next_token
        if token is None:
            break
    if key and not seen:
        retrying(uri, lambda: _raise_missing(uri))
    if recursive:
        _add_folders(found, key)
    return found


def _raise_missing(uri: str) -> None:
    raise FileNotFoundError(uri)


def _add_folders(found: dict[str, s3.Entry], key: str) -> None:
    start = len(key) + 1 if key else 0
    for entry in list(found.values()):
        folder = entry.key
        while len(folder := folder.rpartition("/")[0]) > max(start, 0) and folder not in found:
            found[folder] = s3.Entry(folder, False)


def delete(uri: str) -> None:
    """Delete an object, and all objects below it."""
    retrying(uri, lambda: s3.delete(uri))
    token = None
    while True:
        page = retrying(uri, functools.partial(s3.list_page, uri, token, recursive=True))
        keys = [entry.key if entry.is_file else f"{entry.key}/" for entry in page.entries]
        if keys:
            retrying(uri, functools.partial(s3.delete_all, uri, keys))
        token = page.next_token
        if token is None:
            return


def exists(uri: str) -> bool:
    """Return whether an object exists, or any object below it. For a bucket, return whether it exists."""
    if not s3.split_s3(uri)[1]:
        return retrying(uri, lambda: s3.has_bucket(uri))

    def look() -> bool:
        try:
            s3.head(uri)
        except FileNotFoundError:
            return bool(s3.list_page(uri, None, recursive=True, limit=1).entries)
        return True

    return retrying(uri, look)


def is_object(uri: str) -> bool:
    """Return whether an object with exactly this key exists."""

    def look() -> bool:
        try:
            s3.head(uri)
        except FileNotFoundError:
            return False
        return True

    return bool(s3.split_s3(uri)[1]) and retrying(uri, look)
