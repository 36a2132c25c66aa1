"""The watch over hung workers and what the board passes on: who hangs, who is to save, whom Ray killed for memory."""

import time

import ray

from landmark.training.distributed.callbacks import PEAK_STEPS, MemoryWatch
from landmark.training.distributed.monitor import Beat, Board, new_board, verdict_of
from landmark.training.distributed.watchdog import hung_worker, watched


def beat(rank: int, **changes) -> tuple[float, Beat]:
    values = {"node": "n", "host": "h", "pid": rank, "moves": 10, "phase": "validating", "step": 5, **changes}
    return 0.0, Beat(rank=rank, **values)


def test_the_worker_that_the_others_wait_for_in_validation_is_the_hung_one():
    seen = [beat(0, moves=7, phase="validated"), beat(1, moves=30)]
    assert hung_worker(seen, stalled=True) == seen[1][1]
    assert hung_worker(seen, stalled=False) is None


def test_a_board_that_is_gone_is_reported_once_and_ends_neither_the_watch_nor_the_run(ray_cluster):
    board = new_board()
    told: list[str] = []
    with watched(board, 0.4, told.append):
        ray.kill(board)
        deadline = time.monotonic() + 30
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
    assert len(told) == 1 and told[0].startswith("warning: the watchdog may miss hung workers: ")
    assert verdict_of(board) is None


def test_a_request_to_save_is_passed_on_until_it_is_met_and_waits_for_nobody_who_cannot_or_need_not():
    board = Board()
    number = board.ask_save()
    assert board.needless(number)  # there is no worker
    assert board.beat(beat(0, phase="in a step")[1]) == board.beat(beat(1)[1]) == number
    assert not board.needless(number)
    board.beat(beat(0, phase="validated")[1])
    assert board.needless(number)
    board.beat(beat(0, phase="saving")[1])
    assert not board.needless(number)
    board.saved(number)
    assert board.needless(number) and board.beat(beat(1)[1]) == 0
    assert board.ask_save() > number and board.beat(beat(1)[1]) > number


# As Ray 2.60 words it.
KILLED = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 9f3a) was 15.30GB used / "
    "16.00GB limit (0.956250)\nOOM kill reason: the node's usage is above its threshold\nRay killed 1 worker(s) based on the policy"
)


def test_a_worker_that_ray_kills_for_memory_in_its_first_steps_ends_the_run_for_good(ray_cluster):
    for steps, ends in ((PEAK_STEPS, False), (3, True)):
        board = new_board()
        ray.get(board.beat.remote(beat(0, step=steps)[1]))
        watch = MemoryWatch(board, "lower loader.batch_size (64)")
        watch.after_exception(None, {0: ValueError("of another kind"), 1: ray.exceptions.OutOfMemoryError(KILLED)})
        expected = "out of memory: Ray killed a process when 15.30 of 16.00 GB were in use on its node (10.0.0.7)"
        assert verdict_of(board) == (
            f"{expected}; lower loader.batch_size (64), or place fewer workers on a node" if ends else None
        )
        ray.kill(board)
