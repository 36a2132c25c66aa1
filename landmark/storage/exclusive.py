"""Creating a file that only one of several processes may create."""

import os
import time
import uuid

from landmark.storage import s3
from landmark.storage.errors import NotFound
from landmark.storage.location import Location
from landmark.storage.retry import retrying

SETTLE_S = 3.0
"""Seconds after which storage without conditional writes is read back."""


def create(location: Location, data: bytes) -> bool:
    """Create a file unless it exists; returns whether this call created it. `data` must be unique to the call.

    On a local disk, and on S3 servers that support conditional writes (AWS, MinIO, SeaweedFS, Ceph …), exactly one of
    several calls returns True, whatever happens between them. Other storage has no such operation: the file is written
    and read back SETTLE_S later, and of calls that begin within that time the last writer's returns True.
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
    """Create a file on a disk, with all of its data at once."""
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
    """Create an object by a conditional write; None where the server does not support these."""
    answer = retrying(location.uri, lambda: s3.put_new(location.uri, data))
    if answer == "exists":  # perhaps by this call, when its answer was lost
        return _read(location) == data
    if answer == "created" and retrying(location.uri, lambda: s3.put_new(location.uri, data)) == "exists":
        return _read(location) == data
    return None
