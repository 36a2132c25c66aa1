"""The lease of a study: exactly one process drives it."""

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
from landmark.search.state.study_lock import Lease, machine, started_at
from landmark.storage import Location, create, locate
from tests.support.seaweed import Seaweed


@pytest.fixture(params=["disk", "s3"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return locate(tmp_path / "study")
    server: Seaweed = request.getfixturevalue("s3")
    return locate(server.uri(f"lease-{tmp_path.name}"))


def hold(study: Location, number: int, **values) -> None:
    (study / "drivers" / f"{number:05d}.json").write_text(json.dumps({"token": "theirs", "beat": 0.0, **values}))


def newest(study: Location) -> dict:
    return json.loads((study / "drivers" / (study / "drivers").names()[-1]).read_text())


def test_of_many_that_start_at_once_one_proceeds(study: Location):
    """With a dead driver to be taken over, too."""
    hold(study, 1, host="elsewhere", machine="another", pid=1, started=0.0)
    leases = [Lease(study, beat_s=0.4) for _ in range(6)]
    got: list[Lease] = []
    refused: list[str] = []

    def begin(lease: Lease) -> None:
        try:
            got.append(lease.__enter__())
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 5
    assert all(f"process {os.getpid()} on " in reason for reason in refused)
    got[0].__exit__()
    assert newest(study)["released"]
    with Lease(study):
        assert not newest(study).get("released")


def test_a_file_is_created_once(study: Location):
    made = [create(study / "new", str(number).encode()) for number in range(3)]
    assert made == [True, False, False] and (study / "new").read_text() == "0"
    assert study.names() == ["new"]


def test_a_process_of_this_machine_is_looked_up(tmp_path):
    study = locate(tmp_path)
    with Lease(study), pytest.raises(UserError, match=f"process {os.getpid()} on .* runs this study"), Lease(study):
        pass
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        hold(study, 7, host="x", machine=machine(), pid=other.pid, started=started_at(other.pid))
        with pytest.raises(UserError, match=f"process {other.pid}"), Lease(study):
            pass
    finally:
        other.kill()
        other.wait()
    with Lease(study):
        assert newest(study)["pid"] == os.getpid()


def test_the_same_host_name_is_not_the_same_machine(tmp_path):
    """A container elsewhere may have this one's name, and its process a number that nobody has here."""
    study = locate(tmp_path)
    stop = threading.Event()

    def show_life() -> None:
        hold(study, 1, host=os.uname().nodename, machine="another", pid=2**22 - 1, started=0.0, beat=time.time())

    def beat() -> None:
        while not stop.wait(0.05):
            show_life()

    show_life()
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="runs this study"), Lease(study, beat_s=2):
            pass
    finally:
        stop.set()
        thread.join()


def test_what_refers_to_a_lease_can_be_stored_as_ray_tune_stores_it(tmp_path):
    with Lease(locate(tmp_path)) as lease:
        copy = cloudpickle.loads(cloudpickle.dumps(lambda: lease.lost))
    assert copy() is False


def test_who_slept_ends_when_another_has_taken_over_and_changes_nothing_of_it(tmp_path, capsys):
    study = locate(tmp_path)
    with Lease(study, beat_s=0.05) as lease:
        hold(study, 2, host="elsewhere", machine="another", pid=1, started=0.0)
        lease._thread.join(60)
        assert lease.lost
        with pytest.raises(UserError, match=re.escape("process 1 on elsewhere took this study over")):
            lease.check()
    assert newest(study)["token"] == "theirs"
