"""The cache on a disk: bounded, least recently used first, and never the reason for a wrong table or a failed run."""

import fcntl
import functools
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from landmark.config import UserError
from landmark.data.cache import disk_cache
from landmark.data.cache.disk_cache import FOLDER, DiskCache

MIB = 1 << 20


def table(number: int, size: int = 100_000) -> pa.Table:
    """A row group of two images. Its content depends on the number."""
    images = [bytes([number % 251]) * size, b"small"]
    return pa.table({"label": pa.array([number, 7], pa.int32()), "image": pa.array(images, pa.large_binary())})


def entries(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in folder.rglob("*.arrow")}


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".arrow", ".tmp"))


def fill(cache: DiskCache, *keys: str) -> list[str]:
    """Fetch keys in order. Returns those that were loaded."""
    loaded = []

    def load(key: str) -> pa.Table:
        loaded.append(key)
        return table(int(key[-2:]))

    for key in keys:
        assert cache.fetch(key, lambda key=key: load(key)).equals(table(int(key[-2:])))
    return loaded


def age(folder: Path, key: str, seconds: float) -> None:
    """Set the time of use of an entry."""
    then = time.time() - seconds
    os.utime(entries(folder)[key], (then, then))


def test_a_table_is_loaded_once_and_memory_mapped(tmp_path):
    cache = DiskCache(str(tmp_path), MIB)
    assert cache.get("aa-01") is None
    assert fill(cache, "aa-01", "bb-02", "aa-01") == ["aa-01", "bb-02"]
    # Another process finds the entries.
    before = pa.total_allocated_bytes()
    found = DiskCache(str(tmp_path), MIB).get("aa-01")
    assert found is not None and found.equals(table(1)) and found.schema == table(1).schema
    assert pa.total_allocated_bytes() - before < 10_000


def test_rows_of_a_slice_are_stored_without_the_rest(tmp_path):
    cache = DiskCache(str(tmp_path), MIB)
    part = pa.concat_tables([table(1), table(2)]).slice(1, 2)
    assert cache.fetch("aa", lambda: part).equals(part)
    assert DiskCache(str(tmp_path), MIB).get("aa").equals(part)


def test_the_least_recently_used_entries_are_removed_first(tmp_path):
    cache = DiskCache(str(tmp_path), 500_000)  # four entries
    fill(cache, "aa-01", "bb-02", "cc-03", "dd-04")
    for key, seconds in (("aa-01", 400), ("bb-02", 300), ("cc-03", 200), ("dd-04", 100)):
        age(tmp_path, key, seconds)
    assert fill(cache, "aa-01") == []  # used now
    fill(cache, "ee-05")
    assert set(entries(tmp_path)) == {"aa-01", "cc-03", "dd-04", "ee-05"}
    fill(cache, "ff-06")
    assert set(entries(tmp_path)) == {"aa-01", "dd-04", "ee-05", "ff-06"}
    assert used(tmp_path) <= 500_000


def test_a_table_larger_than_the_cache_is_not_stored(tmp_path):
    cache = DiskCache(str(tmp_path), 150_000)
    fill(cache, "aa-01")
    assert cache.fetch("bb", lambda: table(2, 200_000)).equals(table(2, 200_000))
    assert set(entries(tmp_path)) == {"aa-01"} and used(tmp_path) <= 150_000


def test_a_smaller_limit_applies_to_the_next_entry(tmp_path):
    fill(DiskCache(str(tmp_path), MIB), "aa-01", "bb-02", "cc-03", "dd-04")
    fill(DiskCache(str(tmp_path), 250_000), "ee-05")
    assert "ee-05" in entries(tmp_path) and used(tmp_path) <= 250_000


def test_files_that_users_delete_are_no_longer_counted(tmp_path):
    cache = DiskCache(str(tmp_path), 350_000)
    fill(cache, "aa-01", "bb-02", "cc-03")
    for path in entries(tmp_path).values():
        path.unlink()
    fill(cache, "dd-04", "ee-05", "ff-06")
    assert set(entries(tmp_path)) == {"dd-04", "ee-05", "ff-06"}


def test_a_deleted_folder_is_made_again(tmp_path):
    cache = DiskCache(str(tmp_path / "cache"), MIB)
    fill(cache, "aa-01")
    subprocess.run(["rm", "-r", str(tmp_path / "cache")], check=True)
    assert fill(cache, "aa-01", "aa-01") == ["aa-01"]


@pytest.mark.parametrize("place", [0, 200, 50_000, -30, -10, -1])
def test_a_changed_byte_is_found_and_the_table_loaded_again(tmp_path, place):
    fill(DiskCache(str(tmp_path), MIB), "aa-01")
    (path,) = entries(tmp_path).values()
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)
    assert fill(DiskCache(str(tmp_path), MIB), "aa-01", "aa-01") == ["aa-01"]


@pytest.mark.parametrize("size", [0, 10, 24, 4096, 99_999, -1])
def test_a_truncated_entry_is_loaded_again(tmp_path, size):
    cache = DiskCache(str(tmp_path), MIB)
    fill(cache, "aa-01")
    (path,) = entries(tmp_path).values()
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    assert fill(cache, "aa-01", "aa-01") == ["aa-01"]  # also in the process that has read it before


def test_a_block_of_zeros_after_a_power_cut_is_found(tmp_path):
    fill(DiskCache(str(tmp_path), MIB), "aa-01")
    (path,) = entries(tmp_path).values()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(bytes(4096))
    assert DiskCache(str(tmp_path), MIB).get("aa-01") is None
    assert not path.exists()


def test_a_table_stays_valid_when_its_entry_is_removed(tmp_path):
    cache = DiskCache(str(tmp_path), 150_000)
    fill(cache, "aa-01")
    held = cache.get("aa-01")
    fill(cache, "bb-02")
    assert set(entries(tmp_path)) == {"bb-02"}
    assert held is not None and held.equals(table(1))


def test_threads_load_each_table_once(tmp_path):
    cache, loaded = DiskCache(str(tmp_path), 10 * MIB), []

    def load(key: str) -> pa.Table:
        loaded.append(key)
        time.sleep(0.05)
        return table(int(key[-2:]))

    def work() -> None:
        for number in range(8):
            key = f"aa-{number:02d}"
            assert cache.fetch(key, functools.partial(load, key)).equals(table(number))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(loaded) == [f"aa-{number:02d}" for number in range(8)]


def test_an_error_of_loading_reaches_the_caller_and_the_next_call_loads_again(tmp_path):
    cache = DiskCache(str(tmp_path), MIB)

    def fail() -> pa.Table:
        raise OSError("the bucket is gone")

    with pytest.raises(OSError, match="the bucket is gone"):
        cache.fetch("aa-01", fail)
    assert not list(tmp_path.rglob("*.tmp"))
    assert fill(cache, "aa-01", "aa-01") == ["aa-01"]


def test_a_process_that_hangs_while_it_loads_is_not_waited_for_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "WAIT_S", 0.3)
    place = tmp_path / FOLDER / "aa" / "aa-01.tmp"
    cache = DiskCache(str(tmp_path), MIB)
    place.parent.mkdir()
    with place.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert fill(cache, "aa-01", "aa-01") == ["aa-01", "aa-01"]
    assert fill(cache, "aa-01", "aa-01") == ["aa-01"]


def test_a_locked_total_size_only_prevents_storing(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "LOCK_S", 0.1)
    cache = DiskCache(str(tmp_path), MIB)
    with (tmp_path / FOLDER / "total").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert fill(cache, "aa-01") == ["aa-01"] and not entries(tmp_path)
    assert fill(cache, "aa-01", "aa-01") == ["aa-01"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "landmark-test", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_warning_and_entries_are_still_read(small_disk, capsys, monkeypatch):
    monkeypatch.setattr(disk_cache, "PAUSE_S", 0.2)
    cache = DiskCache(str(small_disk), 100 * MIB)
    first = fill(cache, *(f"aa-{number:02d}" for number in range(60)))
    stored = set(entries(small_disk))
    assert len(first) == 60 and 25 <= len(stored) <= 31
    assert fill(cache, *stored) == []
    missing = sorted(set(first) - stored)
    assert fill(cache, *missing) == missing
    assert not list(small_disk.rglob("*.tmp"))
    err = capsys.readouterr().err
    assert err.splitlines() == [
        f"warning: {small_disk}: cannot write to the cache (No space left on device); reading continues without "
        "storing in it"
    ]
    # Space that becomes free is used.
    for path in list(entries(small_disk).values())[:5]:
        path.unlink()
    time.sleep(0.3)
    assert fill(cache, missing[0], missing[0]) == [missing[0]]


@pytest.mark.parametrize("kind", ["file", "file above"])
def test_a_folder_that_cannot_be_used_is_an_error_with_the_fix(tmp_path, kind):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" if kind == "file" else tmp_path / "file" / "cache"
    with pytest.raises(UserError, match=r"cannot be used as the cache \(.*\); give a writable folder on a local disk"):
        DiskCache(str(place), MIB)


def test_the_bytes_of_an_entry_are_those_of_its_images(tmp_path):
    images = pa.array([np.random.default_rng(0).bytes(50_000) for _ in range(32)], pa.large_binary())
    rows = pa.table({"label": pa.array(range(32), pa.int32()), "image": images})
    DiskCache(str(tmp_path), 10 * MIB).fetch("aa", lambda: rows)
    assert 32 * 50_000 < used(tmp_path) < 32 * 50_000 + 2048
