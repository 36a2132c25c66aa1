"""pyarrow filesystems, for random access to Parquet files, for Ray, and for storage other than S3."""

import functools
import os

from pyarrow import fs as pafs

from landmark.config import UserError
from landmark.storage.retry import retrying
from landmark.storage.s3 import CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S
from landmark.storage.uri import scheme_of, split_s3


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return a URI's filesystem and the path within it, `bucket/key` for S3."""
    scheme = scheme_of(uri)
    if not scheme:
        return _local(), uri
    if scheme == "s3":
        bucket, key = split_s3(uri)
        if "" in key.split("/") and key:
            raise UserError(f"{uri}: contains '//', which no path of a dataset, run or study may contain; remove it")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
        credentials = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
        filesystem = _s3(endpoint, region, hash(credentials), "" if endpoint or region else bucket)
        return filesystem, f"{bucket}/{key}".rstrip("/")
    return _fsspec(uri)


class FileStream:
    """A file outside S3, read from an offset."""

    def __init__(self, uri: str, offset: int) -> None:
        filesystem, path = open_filesystem(uri)
        self._file = filesystem.open_input_file(path)
        self.size: int | None = self._file.size()
        self.etag: str | None = None
        self._file.seek(offset)

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes, none at the end."""
        return self._file.read(count)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@functools.cache
def _local() -> pafs.LocalFileSystem:
    return pafs.LocalFileSystem()


@functools.lru_cache(maxsize=16)
def _s3(endpoint: str, region: str, credentials: int, bucket: str) -> pafs.S3FileSystem:
    """Open S3. `credentials` is only a cache key per environment. The client reads the credentials itself."""
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
