"""Locations of files and folders, with atomic writes."""

import contextlib
import functools
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from landmark.config import UserError
from landmark.storage import s3_objects, transfer
from landmark.storage.errors import DENIED, Damaged, NotFound
from landmark.storage.filesystem import open_filesystem
from landmark.storage.retry import alive, retrying
from landmark.storage.uri import absolute, joined, scheme_of, split_s3

CHUNK_BYTES = 4 << 20
"""Bytes per read or write outside S3."""


@dataclass(frozen=True)
class Location:
    """A file or folder on a local disk or in object storage.

    It contains only the URI, so that its pickle contains no credentials. Each process opens the filesystem with the
    credentials of its own environment. S3 uses the endpoint of AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, and the region
    of AWS_REGION or AWS_DEFAULT_REGION.
    """

    uri: str

    @property
    def fs(self) -> pafs.FileSystem:
        """The pyarrow filesystem."""
        return open_filesystem(self.uri)[0]

    @property
    def path(self) -> str:
        """The path within `fs`, `bucket/key` for S3."""
        return open_filesystem(self.uri)[1]

    @property
    def inner_path(self) -> str:
        """The prefix of the paths in a listing. For S3 it is `bucket/key` for any key."""
        if not self.is_s3:
            return self.path
        return "/".join(split_s3(self.uri)).rstrip("/")

    @property
    def is_s3(self) -> bool:
        """Whether this is on S3."""
        return scheme_of(self.uri) == "s3"

    def __truediv__(self, name: str) -> "Location":
        return Location(joined(self.uri, name))

    def __str__(self) -> str:
        return self.uri

    def local_path(self) -> Path | None:
        """Return the path on this machine's disk, or None for object storage."""
        return None if scheme_of(self.uri) else Path(self.uri)

    def exists(self) -> bool:
        """Return whether a file or folder exists here."""
        if self.is_s3:
            return transfer.exists(self.uri)
        return retrying(self.uri, lambda: self.fs.get_file_info(self.path).type != pafs.FileType.NotFound)

    def is_file(self) -> bool:
        """Return whether a file (not a folder) exists here."""
        if self.is_s3:
            return transfer.is_object(self.uri)
        return retrying(self.uri, lambda: self.fs.get_file_info(self.path).type == pafs.FileType.File)

    def open_input(self) -> pa.NativeFile:
        """Open the file for random access."""
        return retrying(self.uri, self.open_once)

    def open_once(self) -> pa.NativeFile:
        """Open the file for random access inside an operation of `retrying`. Its reads count as progress."""
        return pa.PythonFile(s3_objects.ObjectFile(self.uri), "r") if self.is_s3 else self.fs.open_input_file(self.path)

    def open_stream(self, offset: int) -> transfer.Stream:
        """Open the file for reading from an offset, inside an operation of `retrying`."""
        return transfer.open_stream(self.uri, offset)

    def read_bytes(self) -> bytes:
        """Return the file's bytes."""
        return b"".join(transfer.chunks(self.uri))

    def sha256(self) -> tuple[str, int]:
        """Return the file's SHA-256 in hexadecimal and its size. The file is read as a stream."""
        digest, size = hashlib.sha256(), 0
        for chunk in transfer.chunks(self.uri):
            digest.update(chunk)
            size += len(chunk)
        return digest.hexdigest(), size

    def read_text(self) -> str:
        """Return the file's text. Raises Damaged if it is not UTF-8."""
        try:
            return self.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise Damaged(
                f"{self}: byte {error.start} is not UTF-8 text, so the file is corrupt; restore it, or delete its dataset or run"
            ) from None

    def write_bytes(self, data: bytes) -> None:
        """Publish a file with these bytes. A reader sees either the old file or the complete new one."""
        if self.is_s3:
            transfer.upload_bytes(self.uri, data)
        else:
            retrying(self.uri, lambda: self._write_once(data))

    def _write_once(self, data: bytes) -> None:
        local = self.local_path()
        if local is None:
            with self.fs.open_output_stream(self.path) as stream:
                for start in range(0, len(data), CHUNK_BYTES):
                    stream.write(data[start : start + CHUNK_BYTES])
                    alive()
        else:
            with _replaced(local) as temporary:
                temporary.write_bytes(data)

    def write_text(self, text: str) -> None:
        """Publish a file with this text (UTF-8)."""
        self.write_bytes(text.encode())

    def upload(self, source: Path) -> None:
        """Publish a copy of a local file."""
        if self.is_s3:
            transfer.upload_file(self.uri, source)
        else:
            retrying(self.uri, lambda: self._copy_from(source))

    def _copy_from(self, source: Path) -> None:
        local = self.local_path()
        if local is not None:
            with _replaced(local) as temporary:
                shutil.copyfile(source, temporary)
            return
        with source.open("rb") as reader, self.fs.open_output_stream(self.path) as stream:
            while chunk := reader.read(CHUNK_BYTES):
                stream.write(chunk)
                alive()

    def download(self, target: Path) -> None:
        """Copy the file to a local path."""
        with target.open("wb") as writer:
            for chunk in transfer.chunks(self.uri):
                writer.write(chunk)

    def names(self) -> list[str]:
        """Return the sorted names of the files and folders directly below."""
        return self._names(recursive=False)

    def walk(self) -> list[str]:
        """Return the sorted relative paths of all files in the tree."""
        return self._names(recursive=True)

    def infos(self, *, recursive: bool) -> list[pafs.FileInfo]:
        """Return the pyarrow FileInfo of the files and folders below. Raises NotFound if the folder does not exist."""
        if self.is_s3:
            bucket = split_s3(self.uri)[0]
            kinds = {True: pafs.FileType.File, False: pafs.FileType.Directory}
            found = transfer.entries(self.uri, recursive=recursive).values()
            return [
                pafs.FileInfo(f"{bucket}/{e.key}", kinds[e.is_file], size=e.size if e.is_file else None) for e in found
            ]
        if recursive and self.local_path() is None:
            return self._walk_folders()
        selector = pafs.FileSelector(self.path, recursive=recursive)
        return retrying(self.uri, lambda: self.fs.get_file_info(selector))

    def _walk_folders(self) -> list[pafs.FileInfo]:
        """List folder by folder. Each listing is a separate operation with its own deadline."""
        found, left = [], [self.path]
        while left:
            selector = pafs.FileSelector(left.pop())
            infos = retrying(self.uri, functools.partial(self.fs.get_file_info, selector))
            found += infos
            left += [info.path for info in infos if info.type == pafs.FileType.Directory]
        return found

    def _names(self, *, recursive: bool) -> list[str]:
        start = len(self.inner_path.rstrip("/")) + 1
        infos = self.infos(recursive=recursive)
        return sorted(info.path[start:] for info in infos if not recursive or info.type == pafs.FileType.File)

    def delete(self) -> None:
        """Delete the file, or the folder tree. Does nothing if it does not exist."""
        if self.is_s3:
            if not split_s3(self.uri)[1]:
                raise UserError(f"{self}: is a bucket, and landmark does not delete buckets; add the key to delete")
            transfer.delete(self.uri)
            return

        def remove() -> None:
            kind = self.fs.get_file_info(self.path).type
            if kind == pafs.FileType.File:
                self.fs.delete_file(self.path)
            elif kind == pafs.FileType.Directory:
                self.fs.delete_dir(self.path)

        retrying(self.uri, remove)


def locate(uri: str | Path) -> Location:
    """Return the location of a path or URI: a local path, file://, s3://, or any scheme of fsspec."""
    return Location(absolute(uri))


def check_writable(location: Location) -> None:
    """Write and delete a small file, so that a location without write access is an error before the work starts.

    Some servers create a missing bucket on a write. A missing bucket is an error nevertheless.
    """
    if lacks_bucket(location):
        raise UserError(f"{location}: no such bucket; create it or check its name")
    probe = location / f".landmark-write-check-{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"")
        probe.delete()
    except UserError as error:
        reason = "no such folder; check the path" if isinstance(error, NotFound) else _explained(error, probe)
        raise UserError(f"{location}: cannot be written to: {reason}") from None


def _explained(error: UserError, location: Location) -> str:
    """Return an error's text without its location."""
    return str(error).removeprefix(f"{location}: ")


def lacks_bucket(location: Location) -> bool:
    """Return whether a location is in an S3 bucket that does not exist. False if the credentials do not permit the
    check."""
    if not location.is_s3:
        return False
    try:
        return not Location(f"s3://{split_s3(location.uri)[0]}").exists()
    except UserError as error:
        if DENIED in str(error):
            return False
        raise


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`. It replaces `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
