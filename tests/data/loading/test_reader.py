"""Readers: units in order, limited prefetching, and each unit once even if an actor is killed."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import ray

from landmark.config import LoaderConfig
from landmark.data.dataset import PackedDataset
from landmark.data.loading.actors import ActorPool
from landmark.data.loading.plan import ReadTask, RowGroups, plan_training_epoch
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.loading.reader import CALL_ROWS, REQUESTS, RowGroupReader, read_by_ray, read_by_thread, reads_ahead
from tests.support.packed import write_packed

CONFIG = LoaderConfig(stream="ray", readers=2, reader_cpus=0.25)
READ = {"thread": read_by_thread, "ray": read_by_ray}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [75, 40, 9]}, row_group_rows=4)


@pytest.fixture
def reader(dataset: PackedDataset) -> RowGroupReader:
    return RowGroupReader(dataset.location, dataset.split("train").shards)


def units_of(dataset: PackedDataset, epoch: int) -> list[ReadTask]:
    groups = RowGroups.of(dataset, "train")
    return plan_training_epoch(groups, rank=0, world_size=1, batch_size=8, seed=0, epoch=epoch).read_tasks


@pytest.mark.parametrize("stream", READ)
def test_tables_follow_the_order_of_units_that_are_taken_on_demand(dataset, reader, stream, request):
    if stream == "ray":
        request.getfixturevalue("ray_cluster")
    taken = []

    def endless() -> Iterator[ReadTask]:
        for epoch in range(1, 10**9):
            for task in units_of(dataset, epoch):
                taken.append(task)
                yield task

    with contextlib.closing(READ[stream](reader, endless(), CONFIG)) as tables:
        for number, table in zip(range(100), tables, strict=False):
            task = taken[number]
            assert table["sample"].to_pylist() == (task.first_sample + task.rows).tolist()
            assert table["label"].to_pylist() == [sample % 4 for sample in table["sample"].to_pylist()]
            assert table["image"].null_count == 0
            if stream == "thread":
                assert len(taken) - number <= REQUESTS[1] + 8  # neighbors share requests
            else:
                rows = sum(len(task.rows) for task in taken[number:])
                assert rows <= (reads_ahead(CONFIG) + 1) * (CALL_ROWS + 4)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("landmark-")]


def test_concurrent_requests_mix_up_no_rows(dataset, reader):
    with contextlib.closing(read_by_thread(reader, units_of(dataset, 1) * 20, LoaderConfig())) as tables:
        samples = [sample for table in tables for sample in table["sample"].to_pylist()]
    assert sorted(samples) == sorted(list(range(124)) * 20)


def test_read_all_returns_the_tables_in_order(dataset, reader):
    read_tasks = units_of(dataset, 1)
    tables = reader.read_all(read_tasks)
    assert [table["sample"].to_pylist() for table in tables] == [
        (task.first_sample + task.rows).tolist() for task in read_tasks
    ]


def test_a_killed_actor_loses_and_repeats_no_unit(ray_cluster, dataset, reader):
    actors = ActorPool(SlowReader, reader.split, reader.shards, count=2, cpus=0.25, purpose="data readers")
    pids = ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in actors._actors])
    read_tasks = [task for epoch in (1, 2) for task in units_of(dataset, epoch)]
    samples: list[int] = []
    with contextlib.closing(actors):
        for number, table in enumerate(ordered_prefetch(lambda task: actors.submit("read", task), read_tasks, 4)):
            if number in (5, 20):
                os.kill(pids[number // 20], signal.SIGKILL)
            samples += table["sample"].to_pylist()
    assert samples == np.concatenate([task.first_sample + task.rows for task in read_tasks]).tolist()
    assert sorted(samples) == sorted(list(range(124)) * 2)


class SlowReader(RowGroupReader):
    """A reader whose calls are still running when it is killed."""

    def read(self, task: ReadTask) -> pa.Table:
        time.sleep(0.02)
        return super().read(task)


def test_object_store_usage_does_not_grow_with_the_number_of_units(ray_cluster, tmp_path):
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    dataset = write_packed(tmp_path, {"train": [64, 64]}, size=100)
    reader = RowGroupReader(dataset.location, dataset.split("train").shards)
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    before = get_memory_info_reply(state).store_stats
    peak, rows_per_s = 0, 2500
    read_tasks = [task for epoch in range(1, 101) for task in units_of(dataset, epoch)]
    row_bytes = reader.read(read_tasks[0]).nbytes / 8
    with contextlib.closing(read_by_ray(reader, read_tasks, CONFIG)) as tables:
        for number, _ in enumerate(tables):
            time.sleep(8 / rows_per_s)
            if number % 20 == 0:
                used = get_memory_info_reply(state).store_stats.object_store_bytes_used
                peak = max(peak, used - before.object_store_bytes_used)
    after = get_memory_info_reply(state).store_stats
    # Ray frees unused objects once per second.
    max_rows = (reads_ahead(CONFIG) + 3) * CALL_ROWS + 1.5 * rows_per_s
    assert max_rows < 100 * 128 / 2
    assert CALL_ROWS * row_bytes < peak <= max_rows * row_bytes
    assert after.spilled_bytes_total == before.spilled_bytes_total
