"""DaemonPool: a thread pool whose close() does not wait for hung calls."""

import subprocess
import sys
import threading

import pytest

from landmark.data import threads
from landmark.data.threads import DaemonPool


def test_results_and_errors_are_returned_and_idle_threads_are_reused():
    with DaemonPool(3, "pool") as pool:
        assert [pool.submit(pow, n, exp=2).result() for n in range(20)] == [n * n for n in range(20)]
        assert len({pool.submit(threading.get_ident).result() for _ in range(5)}) <= 3
        calls = [pool.submit(pow, n, 2) for n in range(200)]
        assert [call.result() for call in calls] == [n * n for n in range(200)]
        with pytest.raises(ValueError, match="invalid literal"):
            pool.submit(int, "x").result()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool-")]


def test_close_abandons_a_hung_call_and_cancels_queued_calls(monkeypatch):
    monkeypatch.setattr(threads, "GRACE_S", 0.1)
    hang = threading.Event()
    pool = DaemonPool(1, "pool")
    hung = pool.submit(hang.wait)
    while not hung.running():
        pass
    queued = pool.submit(pow, 2, 2)
    pool.close()
    assert queued.cancelled() and not hung.done()
    hang.set()
    assert hung.result(60)


def test_a_process_exits_without_waiting_for_hung_calls():
    code = (
        "import threading; from landmark.data.threads import DaemonPool\n"
        "DaemonPool(1, 'x').submit(threading.Event().wait)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
