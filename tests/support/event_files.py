"""Read TensorBoard event files, and run scripts in a separate process."""

import os
import struct
import subprocess
import sys
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def read_events(file: Path) -> list[Event]:
    """Return the complete events of a file that hold values, in order."""
    data, found, offset = file.read_bytes(), [], 0
    while offset + 12 <= len(data):
        (size,) = struct.unpack("<Q", data[offset : offset + 8])
        if offset + 16 + size > len(data):
            break
        found.append(Event.FromString(data[offset + 12 : offset + 12 + size]))
        offset += 16 + size
    return [event for event in found if event.summary.value]


def run_script(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python script with a folder as its argument."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, timeout=180
    )
