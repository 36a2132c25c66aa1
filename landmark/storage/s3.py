"""S3 requests that can be repeated, report their progress, and fail with the server's reason."""

import contextlib
import functools
import http
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from landmark.storage.retry import alive
from landmark.storage.uri import split_s3

if TYPE_CHECKING:
    from botocore.client import BaseClient

CONNECT_TIMEOUT_S = 5
"""Also the timeout for the next 16 KiB of an upload."""
REQUEST_TIMEOUT_S = 15
"""Timeout for the response to a request, or for its next bytes, seconds."""
CONNECTIONS = 64
PAGE_KEYS = 1000
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")

_making = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """A file or folder in a listing."""

    key: str
    is_file: bool
    size: int = 0


@dataclass(frozen=True)
class Page:
    """One page of a listing."""

    entries: list[Entry]
    next_token: str | None


class FileChanged(OSError):
    """An object that was replaced while it was read."""


def client() -> "BaseClient":
    """Return the client for the environment's endpoint, region and credentials. Each environment has one client."""
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    credentials = hash(tuple(os.environ.get(name) for name in CREDENTIALS))
    with _making:  # creating a client is not thread-safe
        return _client(address, region, credentials)


@functools.lru_cache(maxsize=16)
def _client(address: str, region: str, credentials: int) -> "BaseClient":
    """Create a client. `credentials` is only a cache key per environment. botocore reads the credentials itself."""
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    session = botocore.session.Session()
    session.set_config_variable("metadata_service_num_attempts", 3)
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=REQUEST_TIMEOUT_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if address else "auto"},
        # A public bucket requires no credentials.
        signature_version=UNSIGNED if session.get_credentials() is None else None,
    )
    return session.create_client("s3", endpoint_url=address or None, region_name=region or None, config=config)


def head(uri: str) -> dict[str, Any]:
    """Return the metadata of an object. Raises FileNotFoundError if it does not exist."""
    bucket, key = split_s3(uri)
    with translated():
        try:
            return client().head_object(Bucket=bucket, Key=key)
        except Exception as error:
            _explain(error, bucket)
            raise


def has_bucket(uri: str) -> bool:
    """Return whether the bucket of a URI exists."""
    with translated():
        try:
            client().head_bucket(Bucket=split_s3(uri)[0])
        except Exception as error:
            if status_of(error) == http.HTTPStatus.NOT_FOUND:
                return False
            _explain(error, split_s3(uri)[0])
            raise
    return True


def _explain(error: Exception, bucket: str) -> None:
    """Raise the reason of a rejected HEAD request, whose response contains no reason."""
    if status_of(error) in (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.MOVED_PERMANENTLY):
        client().list_objects_v2(Bucket=bucket, MaxKeys=1)


def list_page(uri: str, token: str | None, *, recursive: bool, limit: int | None = None) -> Page:
    """Return one page of the entries below a folder, including markers of empty folders. token: from the previous
    page."""
    bucket, key = split_s3(uri)
    options: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "MaxKeys": limit or PAGE_KEYS}
    options |= {} if recursive else {"Delimiter": "/"}
    options |= {"ContinuationToken": token} if token else {}
    with translated():
        answer = client().list_objects_v2(**options)
    files = [
        Entry(item["Key"].removesuffix("/"), not item["Key"].endswith("/"), item["Size"])
        for item in answer.get("Contents", ())
    ]
    folders = [Entry(item["Prefix"].removesuffix("/"), False) for item in answer.get("CommonPrefixes", ())]
    return Page(entries=files + folders, next_token=answer.get("NextContinuationToken"))


def put_new(uri: str, data: bytes) -> Literal["created", "exists", "unconditional"]:
    """Store an object unless it exists. unconditional: the server has no conditional writes, and nothing is stored."""
    bucket, key = split_s3(uri)
    with translated():
        try:
            client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except Exception as error:
            if status_of(error) == http.HTTPStatus.PRECONDITION_FAILED:
                return "exists"
            if status_of(error) == http.HTTPStatus.NOT_IMPLEMENTED:
                return "unconditional"
            if status_of(error) == http.HTTPStatus.CONFLICT:  # another write of the same key is in progress
                raise OSError(f"SLOW_DOWN: {error}") from error
            raise
    return "created"


def put(uri: str, body: io.RawIOBase) -> None:
    """Store an object."""
    bucket, key = split_s3(uri)
    with translated():
        client().put_object(Bucket=bucket, Key=key, Body=body)


def delete(uri: str) -> None:
    """Delete an object. Does nothing if it does not exist."""
    bucket, key = split_s3(uri)
    with translated():
        client().delete_object(Bucket=bucket, Key=key)


def delete_all(uri: str, keys: list[str]) -> None:
    """Delete up to 1000 objects of the bucket of a URI."""
    bucket, answer = split_s3(uri)[0], {}
    together = [{"Key": key} for key in keys if key.isprintable() and key == key.strip()]
    with translated():
        if together:
            answer = client().delete_objects(Bucket=bucket, Delete={"Objects": together, "Quiet": True})
        for key in keys:  # a list of keys is XML, which changes control characters and surrounding blanks
            if not key.isprintable() or key != key.strip():
                client().delete_object(Bucket=bucket, Key=key)
                alive()
    for failed in answer.get("Errors", ()):
        raise OSError(f"AWS Error {failed.get('Code')} for {failed.get('Key')}: {failed.get('Message')}")


def begin_parts(uri: str) -> str:
    """Start a multipart upload. Returns its upload id."""
    bucket, key = split_s3(uri)
    with translated():
        return client().create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]


def put_part(uri: str, upload: str, number: int, body: io.RawIOBase) -> dict[str, Any]:
    """Send a part, numbered from 1. Returns its entry for `end_parts`."""
    bucket, key = split_s3(uri)
    with translated():
        answer = client().upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)
    return {"PartNumber": number, "ETag": answer["ETag"]}


def end_parts(uri: str, upload: str, parts: list[dict[str, Any]], size: int) -> None:
    """Complete a multipart upload. An earlier attempt that succeeded without a response counts."""
    bucket, key = split_s3(uri)
    with translated():
        try:
            client().complete_multipart_upload(
                Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except Exception as error:
            if status_of(error) != http.HTTPStatus.NOT_FOUND or _code(error) != "NoSuchUpload":
                raise
            found = head(uri)
            if found["ContentLength"] != size or not found["ETag"].strip('"').endswith(f"-{len(parts)}"):
                raise


def abort_parts(uri: str, upload: str) -> None:
    """Abort a multipart upload, so that the server deletes its parts."""
    bucket, key = split_s3(uri)
    with translated():
        client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise botocore's errors as OSError, with messages that `storage_error` recognizes."""
    import urllib3
    from botocore import exceptions as failures

    try:
        yield
    except failures.ClientError as error:
        raise _answer_error(error) from None
    except (
        failures.HTTPClientError,
        failures.ConnectionError,
        failures.IncompleteReadError,
        urllib3.exceptions.HTTPError,
    ) as error:
        raise ConnectionError(f"AWS Error NETWORK_CONNECTION: {error}") from None
    except failures.BotoCoreError as error:
        raise OSError(f"AWS Error: {error}") from None


def _answer_error(error: Any) -> OSError:
    code, status = _code(error), status_of(error)
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = error.response["Error"].get("Region") or headers.get("x-amz-bucket-region")
    hint = f"; x-amz-bucket-region: {region}" if region else ""
    if status == http.HTTPStatus.NOT_FOUND and code != "NoSuchBucket":
        return FileNotFoundError(str(error))
    if status == http.HTTPStatus.PRECONDITION_FAILED:
        return FileChanged("changed while it was read")
    return OSError(f"AWS Error {code} (HTTP status {status}): {error}{hint}")


def _code(error: Any) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def status_of(error: Any) -> int:
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answer(error: Any) -> dict[str, Any]:
    """Return the server's response. Empty without one: botocore's connection errors have None there."""
    return getattr(error, "response", None) or {}
