"""Filesystems: a URI becomes a pyarrow filesystem and the path within it."""

import functools
import os
from urllib.parse import urlsplit

from pyarrow import fs as pafs

from landmark.config import UserError
from landmark.storage.retry import retrying

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 15


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
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
