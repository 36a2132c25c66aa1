"""The lease of a study: one process drives it at a time; a dead one's is taken over."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from landmark.config import UserError
from landmark.storage import Damaged, Location, NotFound, create

FOLDER = "drivers"
"""Folder of a study in which each process that drove it has a file, numbered in their order."""
BEAT_S = 10.0
"""Seconds between two signs of life."""
BEATS = 3
"""Signs of life after whose absence a process elsewhere counts as dead."""

END_S = 20.0
"""Seconds that the end of a lease waits for storage."""


class Lease:
    """Held while the block runs; raises UserError where another process that lives drives the study.

    The process whose file has the highest number holds the lease. To take it over from a dead one is to create the next
    number, which only one process can (`landmark.storage.create` says for which storage). Nobody changes or deletes the
    file of another. A process of this machine is looked up; for one elsewhere three signs of life are waited for, so a job
    that is submitted again after its head was lost continues half a minute later. A process that slept for longer finds
    a higher number when it wakes, within a beat: it is `lost` to it.
    """

    def __init__(self, study: Location, beat_s: float = BEAT_S) -> None:
        self.study = study
        self.beat_s = beat_s
        self.lost = False
        """Whether another process has taken the study over."""
        self.number = 0
        self.token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="landmark-lease", daemon=True)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy knows: Ray Tune stores what it is given, and that refers to the lease."""
        return {"study": self.study, "lost": self.lost}

    def __enter__(self) -> "Lease":
        number, holder = self._newest()
        if number and self._lives(number, holder):
            raise self._taken(self._newest()[0])
        self.number = number + 1
        if not create(self._file(self.number), self._text().encode()):
            raise self._taken(self.number)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        # During an outage of storage neither is waited for: the lease counts as a dead process's soon.
        self._thread.join(END_S)
        release = threading.Thread(target=self._release, name="landmark-lease-release", daemon=True)
        release.start()
        release.join(END_S)

    def _release(self) -> None:
        with contextlib.suppress(UserError):
            self._file(self.number).write_text(self._text(released=True))

    def check(self) -> None:
        """Raise UserError where another process has taken the study over."""
        if self.lost:
            raise UserError(
                f"{self.study}: {self._who(self._newest()[0])} took this study over, as this process gave no sign of life for "
                f"{BEATS * self.beat_s:g} s; the study continues there"
            )

    def holder(self) -> str | None:
        """Return the process that drives the study now; None if none does, as far as its last sign of life tells."""
        number, found = self._newest()
        if not number or found.get("released"):
            return None
        if found.get("machine") == machine():
            alive = started_at(int(found["pid"])) == found["started"]
        else:
            alive = abs(time.time() - float(found.get("beat", 0))) < BEATS * self.beat_s
        return self._who(number) if alive else None

    def _file(self, number: int) -> Location:
        return self.study / FOLDER / f"{number:05d}.json"

    def _newest(self) -> tuple[int, dict[str, Any]]:
        """Return the highest number and what its file says; 0 where nobody drove the study."""
        try:
            names = [name.removesuffix(".json") for name in (self.study / FOLDER).names()]
        except NotFound:
            return 0, {}
        number = max((int(name) for name in names if name.isdigit()), default=0)
        return number, self._read(number) if number else {}

    def _read(self, number: int) -> dict[str, Any]:
        try:
            return json.loads(self._file(number).read_text())
        except (NotFound, Damaged, json.JSONDecodeError):
            return {}

    def _lives(self, number: int, holder: dict[str, Any]) -> bool:
        """Return whether the process that has a number drives the study, waiting for signs of life where it is elsewhere."""
        if holder.get("released"):
            return False
        if holder.get("machine") == machine():
            return started_at(int(holder["pid"])) == holder["started"]
        print(
            f"{self.study}: waiting up to {BEATS * self.beat_s:g} s, to see whether {self._who(number)} still runs it",
            file=sys.stderr,
            flush=True,
        )
        deadline = time.monotonic() + BEATS * self.beat_s
        while time.monotonic() < deadline:
            time.sleep(self.beat_s / 4)
            newest, now = self._newest()
            if now.get("released"):
                return False
            if newest != number or now != holder:
                return True
        return False

    def _taken(self, number: int) -> UserError:
        return UserError(
            f"{self.study}: {self._who(number)} runs this study; wait for it, end it, or choose another --name"
        )

    def _who(self, number: int) -> str:
        holder = self._read(number)
        return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"

    def _live(self) -> None:
        while not self._ended.wait(self.beat_s):
            with contextlib.suppress(UserError):  # storage has its own patience; what matters more will tell
                if self._newest()[0] > self.number:
                    self.lost = True
                    return
                self._file(self.number).write_text(self._text())

    def _text(self, *, released: bool = False) -> str:
        values = {
            "token": self.token,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "started": started_at(os.getpid()),
            "beat": round(time.time(), 3),
        }
        return json.dumps(values | ({"released": True} if released else {})) + "\n"


def machine() -> str:
    """Return what processes that see each other's numbers share: host names are not unique, containers hide processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}:{uuid.getnode()}"


def started_at(pid: int) -> float | None:
    """Return when a process of this machine started, to be compared only; None where there is none.

    Linux counts from the boot: its clock may be set while a process runs.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else float(fields[19])
    except OSError:
        pass
    try:
        return round(psutil.Process(pid).create_time(), 2)
    except psutil.NoSuchProcess:
        return None
