"""Processes that use one cache together, for tests of its limit and of killed processes.

Run: python -m tests.support.cache_users FOLDER MAX_BYTES SEED KEYS SECONDS. It fetches random keys and checks each
table. Prints the number of tables that it loaded.
"""

import random
import sys
import time

import pyarrow as pa

from landmark.data.cache.disk_cache import DiskCache

ROWS = 8


def table(number: int) -> pa.Table:
    """Return the table of a key: about 100 to 200 kB, different for each number."""
    images = [bytes([(number + row) % 251]) * (12_500 + 100 * number) for row in range(ROWS)]
    return pa.table({"label": pa.array(range(ROWS), pa.int32()), "image": pa.array(images, pa.large_binary())})


def main(folder: str, max_bytes: int, seed: int, keys: int, seconds: float) -> None:
    """Fetch random keys until the time is over."""
    cache, numbers, loaded = DiskCache(folder, max_bytes), random.Random(seed), 0
    ends = time.monotonic() + seconds

    def load(number: int) -> pa.Table:
        nonlocal loaded
        loaded += 1
        return table(number)

    print("ready", flush=True)
    while time.monotonic() < ends:
        number = numbers.randrange(keys)
        found = cache.fetch(f"{number:02d}-key", lambda number=number: load(number))  # type: ignore[misc]
        if not found.equals(table(number)):
            raise SystemExit(f"another table for key {number}")
    print(loaded)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
