"""The pool whose end waits for no hung call."""

import subprocess
import sys
import threading

import pytest

from landmark.data import threads
from landmark.data.threads import DaemonPool


def test_results_and_errors_come_back_and_idle_threads_are_used_again():
    with DaemonPool(3, "pool") as pool:
        assert [pool.submit(pow, n, exp=2).result() for n in range(20)] == [n * n for n in range(20)]
        assert len({pool.submit(threading.get_ident).result() for _ in range(5)}) <= 3
        calls = [pool.submit(pow, n, 2) for n in range(200)]
        assert [call.result() for call in calls] == [n * n for n in range(200)]
        with pytest.raises(ValueError, match="invalid literal"):
            pool.submit(int, "x").result()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool-")]


def test_a_hung_call_is_left_behind_and_those_that_wait_are_cancelled(monkeypatch):
    monkeypatch.setattr(threads, "GRACE_S", 0.1)
    hang = threading.Event()
    pool = DaemonPool(1, "pool")
    hung = pool.submit(hang.wait)
    while not hung.running():
        pass
    waiting = pool.submit(pow, 2, 2)
    pool.close()
    assert waiting.cancelled() and not hung.done()
    hang.set()
    assert hung.result(60)


def test_a_process_ends_without_its_hung_calls():
    code = "import threading; from landmark.data.threads import DaemonPool; DaemonPool(1, 'x').submit(threading.Event().wait)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
