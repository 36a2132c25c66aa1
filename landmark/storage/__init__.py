"""File storage on local disks and in object storage, with atomic writes and retries of transient failures."""

from landmark.storage.errors import (
    Damaged,
    NotFound,
    PermanentStorageError,
    StorageError,
    TransientStorageError,
    restated,
    storage_error,
)
from landmark.storage.exclusive import create
from landmark.storage.location import Location, check_writable, lacks_bucket, locate
from landmark.storage.retry import alive, hanging, resuming, retrying
from landmark.storage.s3 import REQUEST_TIMEOUT_S
from landmark.storage.transfer import Stream
from landmark.storage.uri import joined, scheme_of

__all__ = [
    "REQUEST_TIMEOUT_S",
    "Damaged",
    "Location",
    "NotFound",
    "PermanentStorageError",
    "StorageError",
    "Stream",
    "TransientStorageError",
    "alive",
    "check_writable",
    "create",
    "hanging",
    "joined",
    "lacks_bucket",
    "locate",
    "restated",
    "resuming",
    "retrying",
    "scheme_of",
    "storage_error",
]
