"""A rank's Ray Data stream: the rows of its plan in their order, checked block by block, whatever happens to readers."""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark.config import AugmentConfig, LoaderConfig, SamplingConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.loading import streams
from landmark.data.loading.loader import Loader
from landmark.data.loading.plan import ReadTask
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.rank_plans import MAX_PARTS, RankPlans, fixed_shape
from landmark.data.loading.reader import RowGroupReader
from landmark.data.loading.sampling import EpochRows
from landmark.data.loading.streams import PartReader, PartSource, StreamReader, local_shard, rank_dataset
from tests.support.packed import write_packed

CONFIG = LoaderConfig(image_size=16, batch_size=10, stream="ray", decode_threads=2, shuffle_row_groups=3)
ROWS = 124


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [75, 40, 9], "val": [13]}, row_group_rows=4)


def plans_of(dataset: PackedDataset, split: str = "train", **changes) -> RankPlans:
    base = RankPlans(
        rows=EpochRows(dataset, split, SamplingConfig(), 0),
        rank=0,
        world_size=1,
        seed=0,
        training=split == "train",
        epochs=range(1, 3),
        shape=fixed_shape(CONFIG),
        shuffle_row_groups=3,
    )
    return dataclasses.replace(base, **changes)


def reader_of(dataset: PackedDataset, split: str = "train") -> functools.partial[RowGroupReader]:
    return functools.partial(RowGroupReader, dataset.location, dataset.split(split).shards)


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(1, 60),
    st.sampled_from(["train", "val"]),
    st.booleans(),
)
def test_the_parts_of_an_epoch_are_its_plan_in_order(dataset, world, step, part_rows, split, decoded):
    position = EpochProgress(epoch=1, partitioning=(world,), length=ROWS, step=step)
    read: list[int] = []
    for rank in range(world):
        plans = plans_of(dataset, split, rank=rank, world_size=world, position=position, part_rows=part_rows)
        reader = PartReader("train", plans, reader_of(dataset, split), decoded, "stream")
        for epoch in plans.epochs:
            schedule = plans.schedule(epoch)
            windows = [window if decoded else window.as_read() for window in plans.windows(schedule)]
            expected = np.concatenate([window.visits for window in windows])
            tables = [table for part in range(plans.parts) for table in reader.part(epoch, part)]
            found = pa.concat_tables(tables)
            assert found["visit"].to_pylist() == expected.tolist()
            assert found["label"].to_pylist() == [sample % 4 for sample in found["sample"].to_pylist()]
            assert len(found) == schedule.batch_rows.sum() + (0 if decoded else schedule.skipped)
            read += found["sample"].to_pylist() if epoch == 2 else []
    assert sorted(read) == list(range(ROWS if split == "train" else 13))


def test_the_source_of_millions_of_images_is_a_few_thousand_numbers(dataset):
    rows = EpochRows(dataset, "train", SamplingConfig(), 0)
    rows.total = 4_132_914
    plans = plans_of(dataset, rows=rows, epochs=range(1, 101), world_size=2)
    read_tasks = PartSource(plans.epochs, plans.parts).get_read_tasks(1)
    assert 100 < len(read_tasks) <= MAX_PARTS
    assert [block.to_pylist() for task in read_tasks[-1:] for block in task()] == [
        [{"epoch": 100, "part": plans.parts - 1}]
    ]
    blocks = [block for task in PartSource(range(1, 10**5), 1).get_read_tasks(1) for block in task()]
    assert len(blocks) <= MAX_PARTS
    assert [epoch for block in blocks for epoch in block["epoch"].to_pylist()] == list(range(1, 10**5))


@contextlib.contextmanager
def stream_of(plans: RankPlans, dataset: PackedDataset, of: RankPlans | None = None):
    """The consumer of a stream with these plans. of: plans that the consumer expects instead."""
    shard = local_shard(plans, reader_of(dataset), CONFIG, None, "train")
    with contextlib.closing(StreamReader(shard, of or plans, CONFIG, threading.Event())) as stream:
        yield stream


def readers() -> set[int]:
    """Return the process IDs of the readers on this machine. Ray fuses the source of part numbers into them."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "ray::MapWorker(ReadPlan->MapBatches(PartReader))" in str(process.info["cmdline"])
    }


def test_a_stream_has_one_process_and_ends_with_its_consumer(ray_cluster, dataset):
    before, plans = readers(), plans_of(dataset, epochs=range(1, 10**3))
    with stream_of(plans, dataset) as stream:
        for epoch in (1, 2, 3):
            schedule = plans.schedule(epoch)
            visits = [visit for table in stream.tables(schedule) for visit in table["visit"].to_pylist()]
            assert visits == [int(visit) for window in plans.windows(schedule) for visit in window.as_read().visits]
        assert len(readers() - before) == 1
    for pid in readers() - before:
        psutil.wait_procs([psutil.Process(pid)], timeout=60)
    assert not readers() - before
    assert not [thread for thread in threading.enumerate() if thread.name == "landmark-stream"]


def test_a_block_that_differs_from_the_plan_is_a_one_line_error(ray_cluster, dataset):
    plans = plans_of(dataset)
    other = dataclasses.replace(plans, seed=1)
    with (
        stream_of(plans, dataset, of=other) as stream,
        pytest.raises(
            UserError, match=r"^train: a block of epoch 1 has visit \d+ where the plan has \d+; check"
        ) as error,
    ):
        list(stream.tables(other.schedule(1)))
    assert "\n" not in str(error.value)


def test_a_stream_that_ends_early_is_a_one_line_error(ray_cluster, dataset):
    plans = plans_of(dataset, epochs=range(1, 2))
    longer = dataclasses.replace(plans, epochs=range(1, 3))
    with stream_of(plans, dataset, of=longer) as stream:
        list(stream.tables(longer.schedule(1)))
        with pytest.raises(UserError, match="train: the stream ended before the end of its plan"):
            list(stream.tables(longer.schedule(2)))


@pytest.mark.parametrize("decode", ["worker", "data"])
def test_killed_readers_and_decoders_lose_and_repeat_no_image(ray_cluster, tmp_path, monkeypatch, decode):
    """All actors of the stream are killed twice in the middle of an epoch."""
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(streams, "STORE_BYTES", 1 << 18)
    dataset = write_packed(tmp_path, {"train": [800, 800]}, classes=4)
    config = dataclasses.replace(CONFIG, readers=2, decode=decode, decoders=2, data_cpus=0.5)
    before = actors()
    samples: dict[int, list[int]] = {1: [], 2: [], 3: []}
    killed = 0
    with Loader(dataset, "train", config, augment=AugmentConfig(), epochs=range(1, 4)) as loader:
        loader.plans = dataclasses.replace(loader.plans, part_rows=400)
        for epoch in samples:
            for number, batch in enumerate(loader.epoch(epoch)):
                if number == 20 and epoch < 3:
                    for pid in actors() - before:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                            killed += 1
                samples[epoch] += batch.samples.tolist()
                assert np.array_equal(batch.labels, batch.samples % 4)
                time.sleep(0.005)
    assert killed >= 4
    assert all(sorted(samples[epoch]) == list(range(1600)) for epoch in samples)


class HangingReader(RowGroupReader):
    """A reader that writes to a file and never returns."""

    def __init__(self, started: Path) -> None:
        self.started = started

    def read_all(self, tasks: list[ReadTask]) -> list[pa.Table]:
        self.started.touch()
        time.sleep(600)
        return []


def test_streams_that_ended_early_do_not_count_as_dead_readers(ray_cluster, dataset, tmp_path):
    """Trials of a study end early, and a resumed run has the same name."""
    plans = plans_of(dataset)
    for attempt in range(streams.RETRIES + 2):
        started = tmp_path / f"{attempt}"
        shard = local_shard(plans, functools.partial(HangingReader, started), CONFIG, None, "train")
        with contextlib.closing(StreamReader(shard, plans, CONFIG, threading.Event())):
            until = time.monotonic() + 60
            while not started.exists() and time.monotonic() < until:
                time.sleep(0.05)
        assert started.exists()
    with stream_of(plans, dataset) as stream:
        assert sum(len(table) for table in stream.tables(plans.schedule(1))) == ROWS


def actors() -> set[int]:
    """Return the process IDs of all Ray Data actors on this machine."""
    return {
        process.pid for process in psutil.process_iter(["cmdline"]) if "ray::MapWorker(" in str(process.info["cmdline"])
    }


def test_object_store_usage_does_not_grow_with_the_dataset(ray_cluster, tmp_path, monkeypatch):
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    monkeypatch.setattr(streams, "STORE_BYTES", 8 << 20)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 20)
    dataset = write_packed(tmp_path, {"train": [64, 64]}, size=100)
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    before = get_memory_info_reply(state).store_stats
    plans = plans_of(dataset, epochs=range(1, 81))
    row_bytes = reader_of(dataset)().read(plans.plan(1).read_tasks[0]).nbytes / 8
    peak = 0.0
    with stream_of(plans, dataset) as stream:
        for epoch in plans.epochs:
            for _ in stream.tables(plans.schedule(epoch)):
                time.sleep(0.02)
            if epoch % 4 == 0:
                used = get_memory_info_reply(state).store_stats.object_store_bytes_used
                peak = max(peak, used - before.object_store_bytes_used)
    assert 80 * 128 * row_bytes > 4 * (8 << 20)
    assert 1 << 20 < peak <= 3 * (8 << 20)
    assert get_memory_info_reply(state).store_stats.spilled_bytes_total == before.spilled_bytes_total


def test_a_stream_with_decoders_reads_only_a_little_ahead(ray_cluster, tmp_path, monkeypatch):
    """Ray Data's own limits let the readers write the complete stream, and decoding stalled."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    monkeypatch.setattr(streams, "STORE_BYTES", 4 << 20)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 18)
    dataset = write_packed(tmp_path, {"train": [600, 600]}, size=100)
    row_bytes = reader_of(dataset)().read(plans_of(dataset).plan(1).read_tasks[0]).nbytes / 8
    config = dataclasses.replace(CONFIG, image_size=64, decode="data", decoders=2, data_cpus=0.5, reader_cpus=0.25)
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    before = get_memory_info_reply(state).store_stats
    peak, limit, epochs = 0.0, 24 << 20, range(1, 13)
    with Loader(dataset, "train", config, augment=AugmentConfig(), epochs=epochs) as loader:
        for epoch in epochs:
            for number, _ in enumerate(loader.epoch(epoch)):
                time.sleep(0.002)
                if number % 20 == 0:
                    used = get_memory_info_reply(state).store_stats.object_store_bytes_used
                    peak = max(peak, used - before.object_store_bytes_used)
    assert len(epochs) * 1200 * row_bytes > 3 * limit
    assert peak <= limit
    assert get_memory_info_reply(state).store_stats.spilled_bytes_total == before.spilled_bytes_total


def test_each_stream_is_limited_and_named_for_the_dashboard(ray_cluster, dataset):
    config = dataclasses.replace(CONFIG, decode="data", decoders="1:3", readers=2)
    found = rank_dataset(plans_of(dataset), reader_of(dataset), config, None, "study-trial-train-rank1")
    options = found.context.execution_options
    assert found.name == "study-trial-train-rank1" and options.preserve_order
    assert options.resource_limits.cpu == 2 * config.reader_cpus + 3 * config.data_cpus
    assert options.resource_limits.object_store_memory == streams.STORE_BYTES
