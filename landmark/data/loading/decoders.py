"""Decoders of batches: threads of the training process, or Ray actors on other CPUs."""

import collections
import itertools
import math
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, wait

import numpy as np
import pyarrow as pa

from landmark.config import AugmentConfig, LoaderConfig
from landmark.cpus import available_cpus
from landmark.data.arrow_binary import values
from landmark.data.loading.actors import ActorPool
from landmark.data.loading.jpeg import decode_batch
from landmark.data.loading.prefetch import Pending
from landmark.data.threads import DaemonPool

Decoded = tuple[np.ndarray, dict[int, str]]
"""uint8 pixels (n, size, size, 3), and the errors by row."""
IDLE_BUFFERS = 16
SLICE_ROWS = 8
"""Minimum images per slice that a thread decodes, if the batch has that many."""
DECODE_BYTES = 1 << 30
"""Maximum memory of the batches in progress, bytes, in addition to the batch that is waited for."""


class TableDecoder:
    """Decodes tables with one augmentation, into memory that is reused when a batch is released."""

    def __init__(self, augment: AugmentConfig | None, seed: int) -> None:
        self.augment = augment
        self.seed = seed
        self._buffers = BufferPool()

    def decode(self, table: pa.Table, epoch: int, size: int) -> Decoded:
        """Decode the column image, JPEGs or planes (no nulls). Randomness comes from the column draw."""
        pixels = self.memory(len(table), size)
        return pixels, self.decode_rows(values(table["image"]), table["draw"].to_numpy(), epoch, pixels)

    def memory(self, rows: int, size: int) -> np.ndarray:
        """Return memory for pixels, uint8 (rows, size, size, 3)."""
        return self._buffers.take((rows, size, size, 3))

    def decode_rows(
        self, images: Sequence[bytes | memoryview], draws: np.ndarray, epoch: int, out: np.ndarray
    ) -> dict[int, str]:
        """Decode images into `out`, uint8 (n, size, size, 3). Returns the errors by row."""
        size = out.shape[1]
        return decode_batch(images, draws, size, augment=self.augment, seed=self.seed, epoch=epoch, out=out)[1]


class ThreadDecoder:
    """Decodes in threads of this process. Several threads decode each batch.

    largest: rows and image size of the largest batch. Enough batches are in progress to keep the threads busy, limited
    by DECODE_BYTES.
    """

    def __init__(
        self, config: LoaderConfig, augment: AugmentConfig | None, seed: int, *, largest: tuple[int, int]
    ) -> None:
        self.threads = config.decode_threads or available_cpus()
        rows, _ = largest
        self.ahead = batches_ahead(-(-self.threads // _slices(rows, self.threads)), largest)
        """Batches to decode concurrently, in addition to the one that is waited for."""
        self._decoder = TableDecoder(augment, seed)
        self._pool = DaemonPool(self.threads, "landmark-decode")

    def submit(self, table: pa.Table, epoch: int, size: int) -> "DecodedSlices":
        """Decode a batch with the columns image and draw."""
        images, draws = values(table["image"]), table["draw"].to_numpy()
        pixels = self._decoder.memory(len(table), size)
        count = _slices(len(table), self.threads)
        bounds = [len(table) * part // count for part in range(count + 1)]
        return DecodedSlices(
            pixels,
            {
                start: self._pool.submit(
                    self._decoder.decode_rows, images[start:stop], draws[start:stop], epoch, pixels[start:stop]
                )
                for start, stop in itertools.pairwise(bounds)
            },
        )

    def close(self) -> None:
        """Stop the threads."""
        self._pool.close()


class DecodedSlices:
    """A batch whose slices are being decoded. slices: the call of each slice, by its first row."""

    def __init__(self, pixels: np.ndarray, slices: dict[int, Future[dict[int, str]]]) -> None:
        self._pixels = pixels
        self._slices = slices

    def result(self, timeout: float | None = None) -> Decoded:
        """Wait up to `timeout` seconds for all slices. Raises TimeoutError."""
        if not wait(self._slices.values(), timeout).not_done:
            faults = {start: call.result() for start, call in self._slices.items()}
            return self._pixels, {start + row: fault for start, of in faults.items() for row, fault in of.items()}
        raise TimeoutError

    def done(self) -> bool:
        """Return whether all slices are decoded."""
        return all(call.done() for call in self._slices.values())

    def cancel(self) -> None:
        """Cancel the slices that have not started."""
        for call in self._slices.values():
            call.cancel()


def _slices(rows: int, threads: int) -> int:
    """Return the number of slices of a batch."""
    return max(1, min(threads, rows // SLICE_ROWS))


def batches_ahead(wanted: int, largest: tuple[int, int]) -> int:
    """Return the number of batches to decode concurrently: `wanted`, limited by DECODE_BYTES, and at least one.

    largest: rows and image size of the largest batch.
    """
    rows, size = largest
    return max(1, min(wanted, DECODE_BYTES // (rows * size * size * 3)))


class ActorDecoder:
    """Decodes in Ray actors. Compressed images go to the actors, uint8 pixels come back through the object store.

    Pixels are read in place from the object store. A batch's array is read-only, and occupies the store until it is
    released.
    """

    def __init__(
        self, config: LoaderConfig, augment: AugmentConfig | None, seed: int, *, largest: tuple[int, int]
    ) -> None:
        self._actors = ActorPool(
            TableDecoder,
            augment,
            seed,
            count=config.decoders,
            cpus=config.data_cpus,
            purpose="decoders",
            spread=True,
        )
        self.ahead = batches_ahead(2 * config.decoders * max(1, int(config.data_cpus)), largest)
        """Batches to decode concurrently: one per thread of the actors, and as many queued."""

    def submit(self, table: pa.Table, epoch: int, size: int) -> Pending[Decoded]:
        """Decode a batch with the columns image and draw."""
        # A copy of only these images, without the rest of their buffer.
        images = pa.array(values(table["image"]), pa.large_binary())
        return self._actors.submit("decode", pa.table({"image": images, "draw": table["draw"]}), epoch, size)

    def close(self) -> None:
        """Stop the actors."""
        self._actors.close()


class BufferPool:
    """Memory for arrays that is reused when nobody holds the array. New memory costs a page fault per 4 KiB."""

    def __init__(self) -> None:
        self._idle: collections.deque[np.ndarray] = collections.deque(maxlen=IDLE_BUFFERS)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialized uint8 array. Its memory is reused once the array and all views of it are released."""
        size = math.prod(shape)
        memory = self._fitting(size)
        # The memoryview `data` makes this array the base of all views. Otherwise numpy would use the memory itself as
        # their base.
        array = np.frombuffer(memory.data, dtype=np.uint8, count=size)
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return array.reshape(shape)

    def _fitting(self, size: int) -> np.ndarray:
        while True:
            try:
                memory = self._idle.popleft()
            except IndexError:
                # Batch sizes differ by a row.
                return np.empty(size + size // 16, dtype=np.uint8)
            if size <= len(memory) <= 2 * size:
                return memory
