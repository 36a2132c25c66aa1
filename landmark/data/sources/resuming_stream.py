"""Sequential streams that resume at their offset when the connection breaks."""

import http.client
import io
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from landmark.config import UserError
from landmark.storage import REQUEST_TIMEOUT_S, Location, NotFound, Stream, alive, retrying

CHUNK_BYTES = 8 << 20
READ_BYTES = 1 << 20


class AccessDenied(UserError):
    """A file that a web server denies or does not have. Without permission to list, the two look alike."""


class ResumingStream(io.RawIOBase):
    """A file opened for sequential reading.

    A broken connection is reopened at its offset, within the deadline of `retrying`. The deadline restarts with each
    chunk. Raises NotFound and UserError like `retrying`, and UserError if the file ends before the size that its server
    reported.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.position = 0
        self._opened: Stream | None = None
        self._chunk = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current chunk. Returns the number of bytes, 0 at the end of the file."""
        if not self._chunk and not self._ended:
            self._chunk = memoryview(self._next_chunk())
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._chunk))
        view[:count] = self._chunk[:count]
        self._chunk = self._chunk[count:]
        return count

    def _next_chunk(self) -> bytes:
        try:
            chunk = retrying(self.location.uri, self._read_chunk)
        except UserError as error:
            if is_web(self.location) and isinstance(error.__cause__, ConnectionError):
                raise UserError(
                    f"{self.location}: the web server does not respond ({error.__cause__}); check the address and that "
                    "the server is running"
                ) from None
            raise
        self.position += len(chunk)
        self._ended = not chunk
        return chunk

    def _read_chunk(self) -> bytes:
        try:
            if self._opened is None:
                self._opened = _open_at(self.location, self.position)
            chunk = self._opened.read(CHUNK_BYTES)
            size = self._opened.size
        except OSError:
            self._drop()
            raise
        if not chunk and size is not None and self.position < size:
            self._drop()
            raise ConnectionError(f"NETWORK_CONNECTION: ended after {self.position} of {size} bytes")
        return chunk

    def _drop(self) -> None:
        if self._opened is not None:
            opened, self._opened = self._opened, None
            opened.close()

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()


def is_there(location: Location) -> bool:
    """Return whether a file exists. Reads the first byte on a web server, which has no listing."""
    if not is_web(location):
        return location.exists()
    try:
        with ResumingStream(location) as stream:
            stream.read(1)
    except (NotFound, AccessDenied):
        return False
    return True


def read_whole(location: Location) -> bytes:
    """Return a file's bytes. Raises NotFound, or UserError with one line."""
    if not is_web(location):
        return location.read_bytes()
    with ResumingStream(location) as stream:
        return stream.readall()


def is_web(location: Location) -> bool:
    """Return whether a location is on a web server, where folders cannot be listed."""
    return location.uri.startswith(("http://", "https://"))


def _open_at(location: Location, offset: int) -> Stream:
    return _WebFile(location.uri, offset) if is_web(location) else location.open_stream(offset)


class _WebFile:
    """A file on a web server. An offset is requested as a range, or skipped if the server does not support ranges."""

    def __init__(self, uri: str, offset: int) -> None:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        request = urllib.request.Request(_quoted(uri), headers=headers)
        try:
            self._response = urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise _status_error(uri, error) from None
        except urllib.error.URLError as error:
            raise _network_error(error.reason) from None
        except (http.client.HTTPException, OSError) as error:
            raise _network_error(error) from None
        length = self._response.headers.get("Content-Length")
        start = offset if self._response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        self.size: int | None = start + int(length) if length and length.isdigit() else None
        self.etag: str | None = None
        self._skip(offset - start)

    def _skip(self, count: int) -> None:
        while count > 0:
            data = self.read(min(count, CHUNK_BYTES))
            if not data:
                raise ConnectionError("NETWORK_CONNECTION: ended before the offset to resume from")
            count -= len(data)

    def read(self, count: int) -> bytes:
        parts, left = [], count
        try:
            while left and (part := self._response.read(min(left, READ_BYTES))):
                parts.append(part)
                left -= len(part)
                alive()
        except (http.client.HTTPException, OSError) as error:
            raise _network_error(error) from None
        return b"".join(parts)

    def close(self) -> None:
        self._response.close()


def _quoted(uri: str) -> str:
    """Quote characters that are not valid in a URL. Characters of names are already quoted."""
    return urllib.parse.quote(uri, safe=":/?#[]@!$&'()*+,;=%~")


def _network_error(error: object) -> OSError:
    """Return a failure as a transient error, unless retrying cannot help."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return PermissionError(error.errno or 1, f"certificate rejected ({error.verify_message})")
    return ConnectionError(f"NETWORK_CONNECTION: {error}")


def _status_error(uri: str, error: urllib.error.HTTPError) -> Exception:
    error.close()
    if error.code in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.GONE):
        return FileNotFoundError(uri)
    if error.code in (http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.REQUEST_TIMEOUT) or error.code >= 500:
        return ConnectionError(f"NETWORK_CONNECTION: HTTP status {error.code}")
    kind = AccessDenied if error.code == http.HTTPStatus.FORBIDDEN else UserError
    return kind(f"{uri}: HTTP status {error.code} ({error.reason}); check the address and its permissions")
