"""TensorBoard's files for tests: what they hold, and scripts in a process of their own whose files may not grow."""

import os
import struct
import subprocess
import sys
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def written(file: Path) -> list[Event]:
    """Return a file's whole events that hold values, in their order."""
    data, found, at = file.read_bytes(), [], 0
    while at + 12 <= len(data):
        (size,) = struct.unpack("<Q", data[at : at + 8])
        if at + 16 + size > len(data):
            break
        found.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += 16 + size
    return [event for event in found if event.summary.value]


def run_script(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python script that is given a folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, timeout=180
    )
