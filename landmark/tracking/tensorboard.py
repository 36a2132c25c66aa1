"""TensorBoard event files, written in the calling thread, so that a failed write raises an error there.

The writer of tensorboardX has a thread that dies when the disk is full. All later calls then block, including the end
of the process.
"""

import contextlib
import os
import socket
import struct
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from landmark.storage import Location


class EventFile:
    """Scalars for TensorBoard in a folder or in object storage. `flush` writes all pending values or none of them.

    `flush` raises OSError or UserError if they cannot be written. Add the values again in that case.
    """

    def __init__(self, folder: Location) -> None:
        local = folder.local_path()
        # For object storage, each flush uploads the file.
        self._to_upload = tempfile.TemporaryDirectory(prefix="landmark-events-") if local is None else None
        self._name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{uuid.uuid4().hex[:8]}"
        self._file = (Path(self._to_upload.name) if self._to_upload is not None else local or Path()) / self._name
        self._target = folder / self._name
        self._pending = [_record(Event(wall_time=time.time(), file_version="brain.Event:2"))]

    @property
    def file_writer(self) -> "EventFile":
        """The attribute that Ray's callback uses to write summaries."""
        return self

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        """Add one value."""
        self.add_summary(scalar(tag, value), global_step)

    def add_summary(self, summary: Any, global_step: int | None = None) -> None:
        """Add a tensorboardX summary."""
        self._pending.append(_record(Event(wall_time=time.time(), step=global_step, summary=summary)))

    def flush(self) -> None:
        """Write the pending values."""
        pending, self._pending = self._pending, []
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab", buffering=0) as file:
                _append(file, b"".join(pending))
        except OSError:
            self._pending = pending[:1] if not self._pending and self._is_new() else []
            raise
        if self._to_upload is not None:
            self._target.upload(self._file)

    def _is_new(self) -> bool:
        return not self._file.exists() or not self._file.stat().st_size

    def close(self) -> None:
        """Write the pending values and finish."""
        if self._pending:
            self.flush()


def _append(file: Any, data: bytes) -> None:
    """Append data to an unbuffered file. If it does not fit, the file is unchanged and OSError is raised."""
    before, at = os.fstat(file.fileno()).st_size, 0
    try:
        while at < len(data):
            at += file.write(data[at:])
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(before)
        raise


def _record(event: Event) -> bytes:
    """Return an event in the format of TensorBoard files: length, checksum, event, checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
