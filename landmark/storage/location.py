"""Places that hold files: files appear whole or not at all."""

import contextlib
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from landmark.config import UserError
from landmark.storage.errors import DENIED, NotFound
from landmark.storage.filesystem import open_filesystem
from landmark.storage.retry import alive, retrying

CHUNK_BYTES = 16 << 20


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
        return open_filesystem(self.uri)[0]

    @property
    def path(self) -> str:
        """The path within `fs`: for S3 `bucket/key`."""
        return open_filesystem(self.uri)[1]

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
