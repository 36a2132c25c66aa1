"""Shards: requests per row group, kept footers, replaced and corrupt files, and as many requests as a slow bucket needs."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from landmark.data.dataset import PackedDataset
from landmark.data.loading.plan import ReadTask, RowGroups
from landmark.data.loading.prefetch import ByteWindow, ordered_prefetch
from landmark.data.loading.reader import RowGroupReader, read_by_thread
from landmark.data.loading.shard_file import TAIL_BYTES, ShardFile
from landmark.data.threads import DaemonPool
from landmark.storage import Location, NotFound, locate
from tests.support.packed import write_packed
from tests.support.proxy import Proxy
from tests.support.seaweed import Seaweed

ROWS, GROUP_ROWS, IMAGE_BYTES = 96, 8, 20_000


def write_shard(path: Path, *, first_label: int = 0, rows: int = ROWS, group_rows: int = GROUP_ROWS) -> pa.Table:
    """Write random bytes as images; return the table."""
    generator = np.random.default_rng(first_label)
    table = pa.table(
        {
            "image_id": [f"{row:08x}" for row in range(rows)],
            "label": pa.array(np.arange(first_label, first_label + rows), pa.int32()),
            "image": [generator.bytes(IMAGE_BYTES) for _ in range(rows)],
            "height": pa.array(np.full(rows, 8), pa.int32()),
        }
    )
    pq.write_table(table, path, row_group_size=group_rows, compression="none", write_page_checksum=True)
    return table


@pytest.fixture
def proxy(s3: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3.ports[3]) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


@pytest.fixture
def shard(s3: Seaweed, tmp_path: Path) -> tuple[Location, pa.Table]:
    location = locate(s3.uri(f"shards/{tmp_path.name}.parquet"))
    table = write_shard(tmp_path / "shard.parquet")
    location.upload(tmp_path / "shard.parquet")
    return location, table


def test_row_groups_are_one_request_each_and_neighbors_share_one(proxy, shard):
    location, table = shard
    file = ShardFile(location)
    proxy.requests = 0
    assert file.read([2])[0].equals(table.select(["label", "image"]).slice(16, 8))
    assert proxy.requests == 2  # the footer, then the row group
    file.read([0])
    assert proxy.requests == 3
    found = file.read([4, 5, 6])
    assert proxy.requests == 4
    assert pa.concat_tables(found).equals(table.select(["label", "image"]).slice(32, 24))


def test_a_row_group_next_to_the_footer_needs_no_further_request(proxy, tmp_path, s3):
    location = locate(s3.uri(f"shards/{tmp_path.name}-small.parquet"))
    table = write_shard(tmp_path / "shard.parquet", rows=2)
    location.upload(tmp_path / "shard.parquet")
    proxy.requests = 0
    assert ShardFile(location).read([0])[0].equals(table.select(["label", "image"]))
    assert proxy.requests == 1


def test_a_broken_connection_fetches_only_the_missing_bytes_again(proxy, shard):
    location, table = shard
    file = ShardFile(location)
    file.read([0])
    proxy.bytes_down, proxy.requests = 0, 0
    proxy.break_after = proxy_bytes = 8 * 3 * IMAGE_BYTES // 2
    found = file.read([0, 1, 2])
    assert pa.concat_tables(found).equals(table.select(["label", "image"]).slice(0, 24))
    assert proxy.break_after is None
    assert proxy.requests == 2
    # Bytes on the way when the connection broke are lost: at most one read of the client.
    assert proxy.bytes_down < 24 * IMAGE_BYTES + proxy_bytes // 2 + TAIL_BYTES


def test_an_outage_in_the_middle_of_a_row_group_is_waited_for(proxy, shard, monkeypatch):
    location, table = shard
    monkeypatch.setenv("LANDMARK_STORAGE_OUTAGE_S", "30")
    file = ShardFile(location)
    file.read([0])
    proxy.bytes_per_s = 1 << 20
    timer = proxy.outage(1.0)
    assert file.read([3])[0].equals(table.select(["label", "image"]).slice(24, 8))
    timer.join()


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_shard_that_is_replaced_is_read_again(place, tmp_path, s3):
    local = tmp_path / "shard.parquet"
    location = locate(str(local)) if place == "disk" else locate(s3.uri(f"shards/{tmp_path.name}-new.parquet"))
    write_shard(local)
    if place == "bucket":
        location.upload(local)
    file = ShardFile(location)
    file.read([0])
    table = write_shard(tmp_path / "new.parquet", first_label=1000, rows=40)
    if place == "bucket":
        location.upload(tmp_path / "new.parquet")
    else:
        os.replace(tmp_path / "new.parquet", local)
    assert file.read([1])[0].equals(table.select(["label", "image"]).slice(8, 8))
    with pytest.raises(pa.ArrowInvalid, match="has 5 row groups; row group 7 was planned"):
        file.read([7])


def test_corrupt_and_missing_shards_are_reported(tmp_path):
    local = tmp_path / "shard.parquet"
    write_shard(local)
    data = bytearray(local.read_bytes())
    data[len(data) // 2] ^= 0xFF
    local.write_bytes(data)
    file = ShardFile(locate(str(local)))
    readable = []
    for group in range(ROWS // GROUP_ROWS):
        with contextlib.suppress(pa.ArrowInvalid):
            readable += file.read([group])
    assert len(readable) == ROWS // GROUP_ROWS - 1
    local.write_bytes(data[: len(data) // 2])
    with pytest.raises(pa.ArrowInvalid):
        file.read([0])
    local.write_bytes(b"")
    with pytest.raises(pa.ArrowInvalid):
        ShardFile(locate(str(local))).read([0])
    local.unlink()
    with pytest.raises(NotFound):
        file.read([0])


def test_the_checksums_of_a_replacement_are_compared_too(tmp_path):
    path, other = tmp_path / "shard.parquet", tmp_path / "other.parquet"
    table = write_shard(path)
    file = ShardFile(locate(str(path)))
    first = [file.read([number])[0] for number in (0, 1, 2)]
    assert pa.concat_tables(first).equals(table.select(["label", "image"]).slice(0, 24))
    data = bytearray(path.read_bytes())
    place = data.index(table["image"][3].as_py()) + IMAGE_BYTES // 2
    data[place] ^= 0xFF
    other.write_bytes(data)
    os.replace(other, path)
    with pytest.raises(pa.ArrowInvalid, match="CRC"):
        file.read([0])
    assert pa.concat_tables(first).equals(table.select(["label", "image"]).slice(0, 24))


def test_a_corrupt_row_group_costs_no_neighbor(tmp_path):
    dataset = write_packed(tmp_path, {"train": [40]}, row_group_rows=4, size=64)
    shard = dataset.split("train").shards[0]
    path = tmp_path / shard.path
    file = pq.ParquetFile(path)
    column = file.metadata.row_group(5).column(file.metadata.schema.names.index("image"))
    data = bytearray(path.read_bytes())
    data[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)
    groups = RowGroups.of(dataset, "train")
    reader = RowGroupReader(dataset.location, dataset.split("train").shards)
    tables = reader.read_all([groups.task(number, 0, 4) for number in range(10)])
    assert [table["fault"].null_count for table in tables] == [4] * 5 + [0] + [4] * 4


def test_a_footer_longer_than_the_first_request_is_read(tmp_path):
    rows = 3000
    table = write_shard_of_tiny_groups(tmp_path / "shard.parquet", rows)
    file = ShardFile(locate(str(tmp_path / "shard.parquet")))
    assert file.read([0])[0].equals(table.slice(0, 1))
    assert len(file._footer.tail.data) > TAIL_BYTES
    assert file.read([rows - 1])[0].equals(table.slice(rows - 1, 1))


def write_shard_of_tiny_groups(path: Path, rows: int) -> pa.Table:
    table = pa.table({"label": pa.array(np.arange(rows), pa.int32()), "image": [b"x" * 300] * rows})
    pq.write_table(table, path, row_group_size=1, compression="none", use_dictionary=False)
    return table


def test_the_window_grows_only_while_the_consumer_waits():
    window: ByteWindow[int] = ByteWindow(lambda item: item, start=10, most=80, calls=(1, 100))
    in_progress = 0
    peaks = {}

    def call(delay: float) -> float:
        time.sleep(delay)
        return delay

    with DaemonPool(16, "test") as pool:
        for delay, wait in ((0.0, 0.02), (0.05, 0.0)):
            for _ in ordered_prefetch(lambda item, delay=delay: pool.submit(call, delay), [5] * 40, window):
                in_progress = window.bytes
                peaks[delay] = max(peaks.get(delay, 0), in_progress)
                time.sleep(wait)
    assert peaks[0.0] <= 20  # only the first result was waited for
    assert peaks[0.05] > 60
    assert window.bound == 80
    assert window.bytes == 0


def test_a_distant_bucket_is_read_with_many_requests_at_a_time(proxy, s3, tmp_path):
    """With 100 ms per request, 96 row groups one after the other would take 10 s; 32 at a time take 0.3 s."""
    dataset = write_packed(tmp_path, {"train": [24] * 4}, row_group_rows=1, size=256)
    target = locate(s3.uri(f"shards/{tmp_path.name}-far"))
    for entry in dataset.split("train").shards:
        (target / entry.path).upload(tmp_path / entry.path)
    groups = RowGroups.of(dataset, "train")
    order = np.random.default_rng(0).permutation(96)
    read_tasks = [groups.task(int(number), 0, 1) for number in order]
    proxy.delay_s = 0.1
    reader = RowGroupReader(target, dataset.split("train").shards)
    most = count_concurrent(proxy, reader, read_tasks)
    assert most >= 16


def count_concurrent(proxy: Proxy, reader: RowGroupReader, read_tasks: list[ReadTask]) -> int:
    """Read all tasks; return the maximum number of requests whose delay overlapped."""
    most = 0
    with contextlib.closing(read_by_thread(reader, iter(read_tasks))) as tables:
        for table in tables:
            assert table["fault"].null_count == len(table)
            most = max(most, proxy.waiting_max)
    return most


def test_packed_datasets_have_the_manifest_sizes(tmp_path):
    dataset: PackedDataset = write_packed(tmp_path, {"train": [40]}, row_group_rows=4)
    reader = RowGroupReader(dataset.location, dataset.split("train").shards)
    groups = RowGroups.of(dataset, "train")
    tasks = [groups.task(number, 0, 4) for number in range(10)]
    parts = list(reader.requests(tasks))
    assert [len(part) for part in parts] == [10]  # small neighbors share a request
    assert list(map(len, reader.requests(tasks[::-1]))) == [1] * 10
    total = sum(entry.bytes for entry in dataset.split("train").shards)
    assert abs(reader.request_bytes(tasks) - total) < 10
