"""Failures of storage: those that may pass, those that will not, and the one line that each is shown as."""

import os

from landmark.config import UserError

DENIED = "access denied"

_TRANSIENT = (
    "NETWORK_CONNECTION",
    "curlCode",
    "SLOW_DOWN",
    "SlowDown",
    "THROTTLING",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "REQUEST_TIMEOUT",
    "REQUEST_EXPIRED",
    "REQUEST_TIME_TOO_SKEWED",
    "HTTP status 50",
    "Could not connect",
    "timed out",
    "Connection reset",
)


class StorageError(UserError):
    """A failure of storage: its text is one line that names the place and the fix."""


class TransientStorageError(StorageError):
    """A failure that may pass: the server is busy, unreachable or does not answer. The same operation may work later."""


class PermanentStorageError(StorageError):
    """A failure that stays until someone fixes its cause: permissions, credentials, a missing bucket, a full disk."""


class NotFound(PermanentStorageError):
    """A file or folder that does not exist."""


class Unanswered(OSError):
    """Object storage gave no sign of life until the deadline."""


def storage_error(uri: str, error: OSError) -> StorageError:
    """Return a failure of the operation on `uri` as the error to raise."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{uri}: no such file or folder; check the path")
    kind = TransientStorageError if isinstance(error, Unanswered) or passes(error) else PermanentStorageError
    return kind(f"{uri}: {_reason(error)}")


def restated(cause: BaseException | None, text: str) -> UserError:
    """Return an error with another text; it may pass if its cause may."""
    return TransientStorageError(text) if isinstance(cause, TransientStorageError) else UserError(text)


def passes(error: OSError) -> bool:
    """Return whether a failure is worth another try at once: never one of the local disk."""
    if isinstance(error, Unanswered):
        return False
    return error.errno is None and any(word in str(error) for word in _TRANSIENT)


def _reason(error: OSError) -> str:
    text = str(error)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    if isinstance(error, Unanswered):
        return f"{text} from the object storage at {endpoint}; check that the server runs, then run the same again"
    denied = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "InvalidAccessKeyId", "Forbidden")
    if any(word in text for word in denied):
        return f"{DENIED}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's permissions"
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text or "Bucket does not exist" in text:
        return "no such bucket; create it or check its name"
    if any(word in text for word in ("SLOW_DOWN", "SlowDown", "THROTTLING", "SERVICE_UNAVAILABLE", "HTTP status 503")):
        return f"the object storage at {endpoint} is busy (it answers with 503 or SlowDown); run the same again later"
    if "NETWORK_CONNECTION" in text or "curlCode" in text or "Connection" in text:
        return f"cannot reach the object storage at {endpoint}; check AWS_ENDPOINT_URL and that the server runs"
    return f"{error.strerror or text.splitlines()[0]}; check the path and its permissions"
