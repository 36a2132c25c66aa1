"""Tests the watchdog for hung workers and the run monitor: hung ranks, save requests, out-of-memory kills."""

import time

import ray

from landmark.training.distributed.callbacks import PEAK_STEPS, MemoryWatch
from landmark.training.distributed.monitor import Heartbeat, RunMonitor, error_of, new_board
from landmark.training.distributed.watchdog import hung_worker, watched


def heartbeat(rank: int, **changes) -> tuple[float, Heartbeat]:
    values = {"node": "n", "host": "h", "pid": rank, "moves": 10, "phase": "validating", "step": 5, **changes}
    return 0.0, Heartbeat(rank=rank, **values)


def test_the_worker_that_blocks_validation_is_the_hung_one():
    heartbeats = [heartbeat(0, moves=7, phase="validated"), heartbeat(1, moves=30)]
    assert hung_worker(heartbeats, stalled=True) == heartbeats[1][1]
    assert hung_worker(heartbeats, stalled=False) is None


def test_a_lost_monitor_is_reported_once_and_does_not_end_the_run(ray_cluster):
    run_monitor = new_board()
    messages: list[str] = []
    with watched(run_monitor, 0.4, messages.append):
        ray.kill(run_monitor)
        deadline = time.monotonic() + 30
        while not messages and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
    assert len(messages) == 1 and messages[0].startswith("warning: the watchdog may miss hung workers: ")
    assert error_of(run_monitor) is None


def test_a_save_request_is_forwarded_until_it_is_met_or_needless():
    run_monitor = RunMonitor()
    number = run_monitor.request_save()
    assert run_monitor.needless(number)  # no worker is running
    assert run_monitor.heartbeat(heartbeat(0, phase="in a step")[1]) == run_monitor.heartbeat(heartbeat(1)[1]) == number
    assert not run_monitor.needless(number)
    run_monitor.heartbeat(heartbeat(0, phase="validated")[1])
    assert run_monitor.needless(number)
    run_monitor.heartbeat(heartbeat(0, phase="saving")[1])
    assert not run_monitor.needless(number)
    run_monitor.saved(number)
    assert run_monitor.needless(number) and run_monitor.heartbeat(heartbeat(1)[1]) == 0
    assert run_monitor.request_save() > number and run_monitor.heartbeat(heartbeat(1)[1]) > number


# The message of Ray 2.60.
KILLED = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 9f3a) was 15.30GB used / "
    "16.00GB limit (0.956250)\nOOM kill reason: the node's usage is above its threshold\nRay killed 1 worker(s) based on the policy"
)


def test_an_out_of_memory_kill_in_the_first_steps_ends_the_run(ray_cluster):
    for steps, ends in ((PEAK_STEPS, False), (3, True)):
        run_monitor = new_board()
        ray.get(run_monitor.heartbeat.remote(heartbeat(0, step=steps)[1]))
        memory_watch = MemoryWatch(run_monitor, "lower loader.batch_size (64)")
        memory_watch.after_exception(
            None, {0: ValueError("of another kind"), 1: ray.exceptions.OutOfMemoryError(KILLED)}
        )
        expected = "out of memory: Ray killed a process when 15.30 of 16.00 GB were in use on its node (10.0.0.7)"
        assert error_of(run_monitor) == (
            f"{expected}; lower loader.batch_size (64), or place fewer workers on a node" if ends else None
        )
        ray.kill(run_monitor)
