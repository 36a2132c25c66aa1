"""The lease of a study: one process drives it at a time; the lease of a dead process can be taken over."""

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
"""Folder of a study with one numbered file per driver process."""
HEARTBEAT_S = 10.0
"""Seconds between two heartbeats."""
BEATS = 3
"""Number of missed heartbeats after which a process on another machine counts as dead."""

END_S = 20.0
"""Seconds that releasing the lease waits for storage."""


class StudyLock:
    """Context manager that holds the lease; raises UserError if another live process drives the study.

    The process whose file has the highest number holds the lease. A process takes the lease over by creating the next
    number, which only one process can do (see `landmark.storage.create` for the supported storage). No process changes or
    deletes another's file. On the same machine, the holder's process is looked up. For a holder on another machine, the new
    process waits for three heartbeats: a job that is resubmitted after the loss of its head resumes half a minute later. A
    process that was suspended for longer finds a higher number within one heartbeat, and its lease is `lost`.
    """

    def __init__(self, study: Location, beat_s: float = HEARTBEAT_S) -> None:
        self.study = study
        self.beat_s = beat_s
        self.lost = False
        """Whether another process has taken the study over."""
        self.number = 0
        self.token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="landmark-lease", daemon=True)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: Ray Tune stores its stopper, which refers to the lease."""
        return {"study": self.study, "lost": self.lost}

    def __enter__(self) -> "StudyLock":
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
        # During a storage outage, neither blocks for long: the lease expires soon.
        self._thread.join(END_S)
        release = threading.Thread(target=self._release, name="landmark-lease-release", daemon=True)
        release.start()
        release.join(END_S)

    def _release(self) -> None:
        with contextlib.suppress(UserError):
            self._file(self.number).write_text(self._text(released=True))

    def check(self) -> None:
        """Raise UserError if another process has taken the study over."""
        if self.lost:
            raise UserError(
                f"{self.study}: {self._who(self._newest()[0])} took this study over, because this process sent no heartbeat for "
                f"{BEATS * self.beat_s:g} s; the study continues there"
            )

    def holder(self) -> str | None:
        """Return the process that drives the study now, judged by its last heartbeat; None if there is none."""
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
        """Return the highest number and the content of its file; 0 and {} if no process has driven the study."""
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
        """Return whether the process with a number drives the study; waits for heartbeats if it is on another machine."""
        if holder.get("released"):
            return False
        if holder.get("machine") == machine():
            return started_at(int(holder["pid"])) == holder["started"]
        print(
            f"{self.study}: waiting up to {BEATS * self.beat_s:g} s to check whether {self._who(number)} still runs it",
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
            f"{self.study}: {self._who(number)} runs this study; wait for it, stop it, or choose another --name"
        )

    def _who(self, number: int) -> str:
        holder = self._read(number)
        return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"

    def _live(self) -> None:
        while not self._ended.wait(self.beat_s):
            with contextlib.suppress(UserError):  # storage retries by itself; other writes report an outage
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
    """Return an id shared by processes that see each other's PIDs: boot id and PID namespace, as host names may repeat."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}:{uuid.getnode()}"


def started_at(pid: int) -> float | None:
    """Return the start time of a process on this machine, only for comparison; None if there is no such process.

    On Linux, the time counts from boot, because the system clock may change while a process runs.
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
