"""Objects of S3 that are read: as a stream from an offset, or at random."""

import http
import io
import time
from typing import Any

from landmark.storage.retry import alive, current_call
from landmark.storage.s3 import client, status_of, translated
from landmark.storage.uri import split_s3

READ_BYTES = 1 << 20
TAIL_BYTES = 64 << 10


class ObjectStream:
    """An object that is read from an offset. Raises OSError if the connection breaks."""

    def __init__(self, uri: str, offset: int = 0, etag: str | None = None, stop: int | None = None) -> None:
        """etag: the version that was read before. Raises FileChanged if the object has another version now.

        stop: end of the bytes to read, exclusive. None reads to the end of the object.
        """
        bucket, key = split_s3(uri)
        options: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if offset or stop is not None:
            options["Range"] = f"bytes={offset}-{'' if stop is None else stop - 1}"
        if etag is not None:
            options["IfMatch"] = etag
        with translated():
            try:
                answer = client().get_object(**options)
            except Exception as error:
                if not (offset and status_of(error) == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
                    raise
                answer = {"Body": io.BytesIO(), "ContentLength": 0, "ETag": etag}  # it was already read to its end
        self.size: int | None = offset + int(answer["ContentLength"])
        self.etag: str | None = answer["ETag"]
        self._body = answer["Body"]

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes, none at the end."""
        parts, left = [], count
        with translated():
            while left and (part := self._body.read(min(left, READ_BYTES))):
                parts.append(part)
                left -= len(part)
                alive()
        return b"".join(parts)

    def close(self) -> None:
        """Close the connection."""
        self._body.close()


class ObjectTail:
    """The last bytes of an object, with its size and version, in one request."""

    def __init__(self, uri: str, count: int) -> None:
        bucket, key = split_s3(uri)
        self.etag: str | None = None
        with translated():
            try:
                answer = client().get_object(Bucket=bucket, Key=key, Range=f"bytes=-{count}")
            except Exception as error:
                if status_of(error) != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise
                self.size, self.data = 0, b""
                return
            self.data = answer["Body"].read()
        self.size = int(answer.get("ContentRange", f"/{len(self.data)}").rpartition("/")[2])
        self.etag = answer["ETag"]


class ObjectFile(io.RawIOBase):
    """An object for random access. Each read is a request, and counts as progress of the operation that opened the
    object.

    Not thread-safe. The end of the object is fetched first, because reading a Parquet file starts there.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.position = 0
        self._call = current_call()  # Arrow reads in its own threads
        tail = ObjectTail(uri, TAIL_BYTES)
        self.size, self._tail = tail.size, tail.data

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes."""
        start, left = self.position, max(0, self.size - self.position)
        count = left if count is None or count < 0 else min(count, left)
        self.position += count
        tail_start = self.size - len(self._tail)
        if start >= tail_start or not count:
            return self._tail[start - tail_start : start - tail_start + count]
        stream = ObjectStream(self.uri, start, stop=start + count)
        parts = []
        while part := stream.read(READ_BYTES):
            parts.append(part)
            if self._call is not None:
                self._call.seen = time.monotonic()
        return b"".join(parts)
