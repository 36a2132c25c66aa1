"""Where batches are decoded: in threads of the training process, or in Ray actors on CPUs elsewhere."""

import collections
import math
import os
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from landmark.config import AugmentConfig, LoaderConfig
from landmark.data.actors import Actors
from landmark.data.ahead import Pending
from landmark.data.decode import decode_batch
from landmark.data.views import values

Decoded = tuple[np.ndarray, dict[int, str]]
"""uint8 pixels (n, size, size, 3), and what is wrong by row."""
IDLE_BUFFERS = 16


class TableDecoder:
    """Decodes tables with one augmentation, into memory that is used again when a batch is let go of."""

    def __init__(self, augment: AugmentConfig | None, seed: int) -> None:
        self.augment = augment
        self.seed = seed
        self._buffers = Buffers()

    def decode(self, table: pa.Table, epoch: int, size: int) -> Decoded:
        """Decode column image (no nulls) with the randomness of column draw."""
        return decode_batch(
            values(table["image"]),
            table["draw"].to_numpy(),
            size,
            augment=self.augment,
            seed=self.seed,
            epoch=epoch,
            out=self._buffers.take((len(table), size, size, 3)),
        )


class ThreadDecoder:
    """Decodes in threads of this process."""

    def __init__(self, config: LoaderConfig, augment: AugmentConfig | None, seed: int) -> None:
        self.ahead = config.decode_threads or available_cpus()
        """Batches to decode at a time, beside the one that is waited for."""
        self._decoder = TableDecoder(augment, seed)
        self._pool = ThreadPoolExecutor(self.ahead, thread_name_prefix="landmark-decode")

    def submit(self, table: pa.Table, epoch: int, size: int) -> Future[Decoded]:
        """Decode a batch: columns image and draw."""
        return self._pool.submit(self._decoder.decode, table, epoch, size)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


class ActorDecoder:
    """Decodes in Ray actors: compressed images go to them, uint8 pixels come back through the object store.

    Pixels are read where they lie in the object store: a batch's array may not be written to, and keeps its place
    there until it is let go of.
    """

    def __init__(self, config: LoaderConfig, augment: AugmentConfig | None, seed: int) -> None:
        self._actors = Actors(
            TableDecoder,
            augment,
            seed,
            count=config.decoders,
            cpus=config.data_cpus,
            purpose="decoders",
            spread=True,
        )
        self.ahead = 2 * config.decoders * max(1, int(config.data_cpus))
        """Batches to decode at a time: one for each thread of the actors, and one that waits."""

    def submit(self, table: pa.Table, epoch: int, size: int) -> Pending[Decoded]:
        """Decode a batch: columns image and draw."""
        # A copy: the images alone, without those around them.
        images = pa.array(values(table["image"]), pa.large_binary())
        return self._actors.submit("decode", pa.table({"image": images, "draw": table["draw"]}), epoch, size)

    def close(self) -> None:
        """Let go of the actors."""
        self._actors.close()


class Buffers:
    """Memory for arrays that is used again when nobody holds the array: fresh memory costs a page fault every 4 KiB."""

    def __init__(self) -> None:
        self._idle: collections.deque[np.ndarray] = collections.deque(maxlen=IDLE_BUFFERS)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a uint8 array of any content, its own as long as it or a view of it is held."""
        size = math.prod(shape)
        memory = self._fitting(size)
        # The memoryview `data` between them keeps numpy from handing views the memory itself instead of this array as their base.
        array = np.frombuffer(memory.data, dtype=np.uint8, count=size)
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return array.reshape(shape)

    def _fitting(self, size: int) -> np.ndarray:
        while True:
            try:
                memory = self._idle.popleft()
            except IndexError:
                # Batches differ by a row.
                return np.empty(size + size // 16, dtype=np.uint8)
            if size <= len(memory) <= 2 * size:
                return memory


def available_cpus() -> int:
    """Return the CPUs this process may use: OMP_NUM_THREADS (Ray sets it to a worker's CPUs), else its affinity."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) > 0 else len(os.sched_getaffinity(0))
