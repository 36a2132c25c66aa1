"""Tests the lock of a study: exactly one process drives it."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ray import cloudpickle

from landmark.config import UserError
from landmark.search.state.study_lock import StudyLock, machine, started_at
from landmark.storage import Location, create, locate
from tests.support.seaweed import Seaweed


@pytest.fixture(params=["disk", "s3"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return locate(tmp_path / "study")
    server: Seaweed = request.getfixturevalue("s3")
    return locate(server.uri(f"lock-{tmp_path.name}"))


def write_holder(study: Location, number: int, **values) -> None:
    (study / "drivers" / f"{number:05d}.json").write_text(json.dumps({"token": "other", "beat": 0.0, **values}))


def newest(study: Location) -> dict:
    return json.loads((study / "drivers" / (study / "drivers").names()[-1]).read_text())


def test_one_of_many_simultaneous_drivers_gets_the_lock(study: Location):
    """The previous holder of the lock is dead, so the drivers also compete to take it over."""
    write_holder(study, 1, host="elsewhere", machine="another", pid=1, started=0.0)
    locks = [StudyLock(study, beat_s=0.4) for _ in range(6)]
    acquired: list[StudyLock] = []
    refused: list[str] = []

    def acquire(lock: StudyLock) -> None:
        try:
            acquired.append(lock.__enter__())
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=acquire, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(acquired) == 1 and len(refused) == 5
    assert all(f"process {os.getpid()} on " in reason for reason in refused)
    acquired[0].__exit__()
    assert newest(study)["released"]
    with StudyLock(study):
        assert not newest(study).get("released")


def test_a_file_is_created_once(study: Location):
    created = [create(study / "new", str(number).encode()) for number in range(3)]
    assert created == [True, False, False] and (study / "new").read_text() == "0"
    assert study.names() == ["new"]


def test_a_holder_on_this_machine_is_checked_by_its_process(tmp_path):
    study = locate(tmp_path)
    with (
        StudyLock(study),
        pytest.raises(UserError, match=f"process {os.getpid()} on .* runs this study"),
        StudyLock(study),
    ):
        pass
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        write_holder(study, 7, host="x", machine=machine(), pid=other.pid, started=started_at(other.pid))
        with pytest.raises(UserError, match=f"process {other.pid}"), StudyLock(study):
            pass
    finally:
        other.kill()
        other.wait()
    with StudyLock(study):
        assert newest(study)["pid"] == os.getpid()


def test_the_same_host_name_is_not_the_same_machine(tmp_path):
    """A container on another machine may have the same host name, and a process ID that is unused here."""
    study = locate(tmp_path)
    stop = threading.Event()

    def write_heartbeat() -> None:
        write_holder(
            study, 1, host=os.uname().nodename, machine="another", pid=2**22 - 1, started=0.0, beat=time.time()
        )

    def beat() -> None:
        while not stop.wait(0.05):
            write_heartbeat()

    write_heartbeat()
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="runs this study"), StudyLock(study, beat_s=2):
            pass
    finally:
        stop.set()
        thread.join()


def test_objects_that_refer_to_a_lock_can_be_pickled(tmp_path):
    with StudyLock(locate(tmp_path)) as lock:
        copy = cloudpickle.loads(cloudpickle.dumps(lambda: lock.lost))
    assert copy() is False


def test_a_driver_that_lost_the_lock_stops_and_does_not_release_it(tmp_path, capsys):
    study = locate(tmp_path)
    with StudyLock(study, beat_s=0.05) as lock:
        write_holder(study, 2, host="elsewhere", machine="another", pid=1, started=0.0)
        lock._thread.join(60)
        assert lock.lost
        with pytest.raises(UserError, match=re.escape("process 1 on elsewhere took this study over")):
            lock.check()
    assert newest(study)["token"] == "other"
