"""Storage errors: transient and permanent ones, each with a one-line message."""

import errno
import os
import re
from collections.abc import Callable

from landmark.config import UserError

DENIED = "access denied"

_PASSING = {
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
}
"""Error numbers of a network or a network file system. Other disk failures are not transient."""


class StorageError(UserError):
    """A storage failure. Its text is one line with the location and the fix."""


class TransientStorageError(StorageError):
    """A transient failure: the server is busy, unreachable or does not respond. The same operation may succeed
    later."""


class PermanentStorageError(StorageError):
    """A failure that requires a fix: permissions, credentials, a missing bucket, a full disk."""


class NotFound(PermanentStorageError):
    """A file or folder that does not exist."""


class Damaged(PermanentStorageError):
    """A text file that is not UTF-8."""


class NoResponse(OSError):
    """Storage made no progress until the deadline."""

    def __init__(self, text: str, since: float) -> None:
        """since: the monotonic time of the last progress."""
        super().__init__(text)
        self.since = since


def storage_error(uri: str, error: OSError) -> StorageError:
    """Return a failure of an operation on `uri` as the error to raise."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{uri}: no such file or folder; check the path")
    if isinstance(error, NoResponse):
        return TransientStorageError(
            f"{uri}: {error} from the object storage at {endpoint()}; check that the server is running, then run the same command again"
        )
    text = str(error)
    if error.errno is not None:
        numbered = TransientStorageError if error.errno in _PASSING else PermanentStorageError
        return numbered(f"{uri}: {error.strerror or text}; check the path and its permissions")
    for kind, words, reason in _FAILURES:
        if any(word in text for word in words):
            return kind(f"{uri}: {reason(text)}")
    return PermanentStorageError(f"{uri}: {(text.splitlines() or [''])[0]}; check the path and its permissions")


def restated(cause: BaseException | None, text: str) -> UserError:
    """Return an error with another text. It is transient if its cause is."""
    return TransientStorageError(text) if isinstance(cause, TransientStorageError) else UserError(text)


def endpoint() -> str:
    """Return the address of the object storage from the environment."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def _other_region(text: str) -> str:
    given = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    found = re.search(r"(?:expecting|located in) '([\w-]+)'|x-amz-bucket-region: ([\w-]+)", text)
    if not found:
        return f"the bucket is in another region than {given}; set AWS_REGION to the bucket's region"
    region = found[1] or found[2]
    return f"the bucket is in the region {region}, not in {given}; set AWS_REGION={region}"


def _expired(text: str) -> str:
    return (
        "the credentials have expired; renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, "
        "or sign in again"
    )


def _refused(text: str) -> str:
    return (
        "the object storage rejected the request without a reason (HTTP status 400); check that the credentials have not "
        "expired (AWS_SESSION_TOKEN) and that AWS_REGION is the bucket's"
    )


def _denied(text: str) -> str:
    return f"{DENIED}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's permissions"


def _no_bucket(text: str) -> str:
    return "no such bucket; create it or check its name"


def _certificate(text: str) -> str:
    return (
        f"the certificate of the object storage at {endpoint()} was rejected; check AWS_ENDPOINT_URL and AWS_CA_BUNDLE"
    )


def _busy(text: str) -> str:
    return f"the object storage at {endpoint()} is busy (it returns 503 or SlowDown); run the same command again later"


def _skewed(text: str) -> str:
    return "the clocks of this machine and of the object storage differ by minutes; correct this machine's clock"


def _unreachable(text: str) -> str:
    return f"cannot reach the object storage at {endpoint()}; check AWS_ENDPOINT_URL and that the server is running"


def _failing(text: str) -> str:
    return (
        f"the object storage at {endpoint()} failed ({text.splitlines()[0][-200:]}); run the same command again later"
    )


_FAILURES: tuple[tuple[type[StorageError], tuple[str, ...], Callable[[str], str]], ...] = (
    (PermanentStorageError, ("ExpiredToken", "TokenRefreshRequired", "InvalidToken"), _expired),
    (
        PermanentStorageError,
        ("AuthorizationHeaderMalformed", "PermanentRedirect", "HTTP status 301", "configured region is"),
        _other_region,
    ),
    (TransientStorageError, ("RequestTimeTooSkewed", "REQUEST_TIME_TOO_SKEWED", "REQUEST_EXPIRED"), _skewed),
    (
        PermanentStorageError,
        (
            "ACCESS_DENIED",
            "INVALID_ACCESS_KEY_ID",
            "SIGNATURE_DOES_NOT_MATCH",
            "AccessDenied",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "AccessDenied",
            "HTTP status 403",
        ),
        _denied,
    ),
    (PermanentStorageError, ("NO_SUCH_BUCKET", "NoSuchBucket", "Bucket does not exist"), _no_bucket),
    (PermanentStorageError, ("CERTIFICATE_VERIFY_FAILED", "curlCode: 60"), _certificate),
    (
        TransientStorageError,
        (
            "SLOW_DOWN",
            "SlowDown",
            "THROTTLING",
            "Throttling",
            "TooManyRequests",
            "SERVICE_UNAVAILABLE",
            "ServiceUnavailable",
            "HTTP status 429",
            "HTTP status 503",
        ),
        _busy,
    ),
    (
        TransientStorageError,
        ("NETWORK_CONNECTION", "curlCode", "Could not connect", "timed out", "Connection reset", "RequestTimeout"),
        _unreachable,
    ),
    (
        TransientStorageError,
        (
            "INTERNAL_FAILURE",
            "InternalError",
            "REQUEST_TIMEOUT",
            "OperationAborted",
            "HTTP status 5",
            "HTTP status 408",
        ),
        _failing,
    ),
    (PermanentStorageError, ("HTTP status 400) during HeadObject", "(400) when calling the Head"), _refused),
)
"""Kinds of failures, by fragments of the messages of pyarrow's and botocore's clients. The first match counts."""
