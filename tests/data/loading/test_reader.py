"""Readers: units in order, limited prefetching."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from landmark.data.dataset import PackedDataset
from landmark.data.loading.plan import ReadTask, RowGroups, plan_training_epoch
from landmark.data.loading.reader import REQUESTS, RowGroupReader, read_by_thread
from tests.support.packed import write_packed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [75, 40, 9]}, row_group_rows=4)


@pytest.fixture
def reader(dataset: PackedDataset) -> RowGroupReader:
    return RowGroupReader(dataset.location, dataset.split("train").shards)


def units_of(dataset: PackedDataset, epoch: int) -> list[ReadTask]:
    groups = RowGroups.of(dataset, "train")
    return plan_training_epoch(groups, rank=0, world_size=1, batch_size=8, seed=0, epoch=epoch).read_tasks


def test_tables_follow_the_order_of_units_that_are_taken_on_demand(dataset, reader):
    taken = []

    def endless() -> Iterator[ReadTask]:
        for epoch in range(1, 10**9):
            for task in units_of(dataset, epoch):
                taken.append(task)
                yield task

    with contextlib.closing(read_by_thread(reader, endless())) as tables:
        for number, table in zip(range(100), tables, strict=False):
            task = taken[number]
            assert table["sample"].to_pylist() == (task.first_sample + task.rows).tolist()
            assert table["label"].to_pylist() == [sample % 4 for sample in table["sample"].to_pylist()]
            assert table["image"].null_count == 0
            assert len(taken) - number <= REQUESTS[1] + 8  # neighbors share requests
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("landmark-")]


def test_concurrent_requests_mix_up_no_rows(dataset, reader):
    with contextlib.closing(read_by_thread(reader, units_of(dataset, 1) * 20)) as tables:
        samples = [sample for table in tables for sample in table["sample"].to_pylist()]
    assert sorted(samples) == sorted(list(range(124)) * 20)


def test_read_all_returns_the_tables_in_order(dataset, reader):
    read_tasks = units_of(dataset, 1)
    tables = reader.read_all(read_tasks)
    assert [table["sample"].to_pylist() for table in tables] == [
        (task.first_sample + task.rows).tolist() for task in read_tasks
    ]
