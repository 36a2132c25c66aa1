"""Exclusive creation: only one of several processes can create a file."""

import os
import time
import uuid

from landmark.storage import s3
from landmark.storage.errors import NotFound
from landmark.storage.location import Location
from landmark.storage.retry import retrying

SETTLE_S = 3.0
"""Seconds before reading back a file on storage without conditional writes."""


def create(location: Location, data: bytes) -> bool:
    """Create a file unless it exists. Returns whether this call created it. `data` must be unique to the call.

    On a local disk, and on S3 servers that support conditional writes (AWS, MinIO, SeaweedFS, Ceph …), exactly one of
    several calls returns True in all cases. Other storage has no such operation. There, the file is written and read
    back SETTLE_S later. Of calls that start within that time, the last writer's call returns True.
    """
    local = location.local_path()
    if local is not None:
        return retrying(location.uri, lambda: _create_local(str(local), data))
    if location.is_s3:
        created = _create_s3(location, data)
        if created is not None:
            return created
    if (there := _read(location)) is None:
        location.write_bytes(data)
    elif there != data:
        return False
    time.sleep(SETTLE_S)
    return _read(location) == data


def _read(location: Location) -> bytes | None:
    try:
        return location.read_bytes()
    except NotFound:
        return None


def _create_local(path: str, data: bytes) -> bool:
    """Create a file on a disk atomically, with all of its data."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a filesystem without hard links
            try:
                with open(path, "xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
        return True
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _create_s3(location: Location, data: bytes) -> bool | None:
    """Create an object with a conditional write. None if the server does not support conditional writes."""
    answer = retrying(location.uri, lambda: s3.put_new(location.uri, data))
    if answer == "exists":  # perhaps created by this call, if its response was lost
        return _read(location) == data
    if answer == "created" and retrying(location.uri, lambda: s3.put_new(location.uri, data)) == "exists":
        return _read(location) == data
    return None
