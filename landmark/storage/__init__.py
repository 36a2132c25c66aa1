"""Places that hold files: a URI becomes a filesystem, files appear whole or not at all, failures that pass are waited for."""

from landmark.storage.errors import NotFound, PermanentStorageError, StorageError, TransientStorageError, restated
from landmark.storage.filesystem import REQUEST_TIMEOUT_S
from landmark.storage.location import Location, check_writable, lacks_bucket, locate
from landmark.storage.retry import alive, hanging, retrying

__all__ = [
    "REQUEST_TIMEOUT_S",
    "Location",
    "NotFound",
    "PermanentStorageError",
    "StorageError",
    "TransientStorageError",
    "alive",
    "check_writable",
    "hanging",
    "lacks_bucket",
    "locate",
    "restated",
    "retrying",
]
