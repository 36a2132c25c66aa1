"""The watch over hung workers: whom it takes for hung, and what becomes of it when its board does not answer."""

import time

import ray

from landmark.training.board import Beat, new_board, verdict_of
from landmark.training.watch import hung_worker, watched


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
    assert len(told) == 1 and told[0].startswith("warning: workers that hang may not be found: ")
    assert verdict_of(board) is None
