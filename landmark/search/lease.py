"""The lease of a study: one process drives it at a time; a dead one's is taken over."""

import json
import os
import socket
import threading
import time
from typing import Any

import psutil

from landmark.config import UserError
from landmark.storage import Location, NotFound

FILE = "driver.json"
BEAT_S = 10.0
"""Seconds between two signs of life."""


class Lease:
    """Held while the block runs; raises UserError where another process that lives drives the study.

    A process of this machine is looked for; of one elsewhere two signs of life are waited for, so that a job that is
    submitted again after its head was lost goes on half a minute later.
    """

    def __init__(self, study: Location, beat_s: float = BEAT_S) -> None:
        self.study = study
        self.file = study / FILE
        self.beat_s = beat_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="landmark-lease", daemon=True)

    def __enter__(self) -> "Lease":
        holder = self._read()
        if holder is not None and self._lives(holder):
            raise UserError(
                f"{self.study}: process {holder['pid']} on {holder['host']} runs this study; wait for it, end it, or choose another --name"
            )
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()
        self.file.delete()

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.file.read_text())
        except (NotFound, json.JSONDecodeError):
            return None

    def _lives(self, holder: dict[str, Any]) -> bool:
        if holder["host"] == socket.gethostname():
            try:
                return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 1
            except psutil.NoSuchProcess:
                return False
        deadline = time.monotonic() + 3 * self.beat_s
        while time.monotonic() < deadline:
            time.sleep(self.beat_s / 4)
            now = self._read()
            if now is None:
                return False
            if now != holder:
                return True
        return False

    def _live(self) -> None:
        while not self._ended.wait(self.beat_s):
            try:
                self._beat()
            except UserError:
                continue  # storage has its own patience; what matters more will tell

    def _beat(self) -> None:
        here = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        self.file.write_text(json.dumps({**here, "beat": round(time.time(), 3)}) + "\n")
