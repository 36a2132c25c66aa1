"""Decoders of batches: threads of the training process, or the pixels that a Ray Data stream decoded."""

import itertools
from collections.abc import Sequence
from concurrent.futures import Future, wait

import numpy as np
import pyarrow as pa

from landmark.config import CROP_PCT, AugmentConfig, LoaderConfig
from landmark.cpus import available_cpus
from landmark.data.arrow_binary import values
from landmark.data.buffers import BufferPool
from landmark.data.loading.jpeg import decode_batch
from landmark.data.threads import DaemonPool

Decoded = tuple[np.ndarray, dict[int, str]]
"""uint8 pixels (n, size, size, 3), and the errors by row."""
IDLE_BUFFERS = 16
SLICE_ROWS = 8
"""Minimum images per slice that a thread decodes, if the batch has that many."""
DECODE_BYTES = 1 << 30
"""Maximum memory of the batches in progress, bytes, in addition to the batch that is waited for."""


class TableDecoder:
    """Decodes tables with one augmentation, into memory that is reused when a batch is released.

    crop_pct: side of the center crop without augmentation, as in `decode_batch`.
    """

    def __init__(self, augment: AugmentConfig | None, seed: int, crop_pct: float = CROP_PCT) -> None:
        self.augment = augment
        self.seed = seed
        self.crop_pct = crop_pct
        self._buffers = BufferPool(IDLE_BUFFERS)

    def decode(self, table: pa.Table, epoch: int, size: int) -> Decoded:
        """Decode the column image, JPEGs or planes (no nulls). Randomness comes from the column visit."""
        pixels = self.memory(len(table), size)
        return pixels, self.decode_rows(values(table["image"]), table["visit"].to_numpy(), epoch, pixels)

    def memory(self, rows: int, size: int) -> np.ndarray:
        """Return memory for pixels, uint8 (rows, size, size, 3)."""
        return self._buffers.take((rows, size, size, 3))

    def decode_rows(
        self, images: Sequence[bytes | memoryview], visits: np.ndarray, epoch: int, out: np.ndarray
    ) -> dict[int, str]:
        """Decode images into `out`, uint8 (n, size, size, 3). Returns the errors by row."""
        size = out.shape[1]
        _, errors = decode_batch(
            images,
            visits,
            size,
            augment=self.augment,
            crop_pct=self.crop_pct,
            seed=self.seed,
            epoch=epoch,
            out=out,
        )
        return errors


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
        self._decoder = TableDecoder(augment, seed, config.crop_pct)
        self._pool = DaemonPool(self.threads, "landmark-decode")

    def submit(self, table: pa.Table, epoch: int, size: int) -> "DecodedSlices":
        """Decode a batch with the columns image and visit."""
        images, visits = values(table["image"]), table["visit"].to_numpy()
        pixels = self._decoder.memory(len(table), size)
        count = _slices(len(table), self.threads)
        bounds = [len(table) * part // count for part in range(count + 1)]
        return DecodedSlices(
            pixels,
            {
                start: self._pool.submit(
                    self._decoder.decode_rows, images[start:stop], visits[start:stop], epoch, pixels[start:stop]
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


class DecodedColumn:
    """Takes the pixels that decoders of a Ray Data stream wrote into the column image.

    A batch's array is in the object store and read-only, unless its rows are from several blocks.
    """

    ahead = 0
    """Batches to decode concurrently, in addition to the one that is waited for. They are decoded already."""

    def submit(self, table: pa.Table, epoch: int, size: int) -> Future[Decoded]:
        """Return the pixels of a batch with the columns image and undecoded."""
        undecoded = enumerate(table["undecoded"].to_pylist())
        result: Future[Decoded] = Future()
        result.set_result((pixels_of(table["image"], size), {row: error for row, error in undecoded if error}))
        return result

    def close(self) -> None:
        """Do nothing: the stream ends its actors."""


def decode_column(
    table: pa.Table, augment: AugmentConfig | None, seed: int, epoch: int, size: int, crop_pct: float = CROP_PCT
) -> pa.Table:
    """Replace the column image by uint8 pixels, RGB, size x size x 3 per row.

    The column undecoded has the error of each image that cannot be decoded. Images that could not be read (nulls) have
    black pixels.
    """
    readable = np.flatnonzero(table["image"].is_valid().to_numpy())
    kept = table if len(readable) == len(table) else table.take(readable)
    pixels, errors = decode_batch(
        values(kept["image"]),
        kept["visit"].to_numpy(),
        size,
        augment=augment,
        crop_pct=crop_pct,
        seed=seed,
        epoch=epoch,
    )
    if len(kept) < len(table):
        decoded, pixels = pixels, np.zeros((len(table), size, size, 3), dtype=np.uint8)
        pixels[readable] = decoded
    undecoded: list[str | None] = [None] * len(table)
    for row, error in errors.items():
        undecoded[int(readable[row])] = error
    bounds = np.arange(len(table) + 1, dtype=np.int64) * (size * size * 3)
    column = pa.Array.from_buffers(
        pa.large_binary(), len(table), [None, pa.py_buffer(bounds), pa.py_buffer(pixels.reshape(-1))]
    )
    table = table.drop_columns(["image"]).append_column("image", column)
    return table.append_column("undecoded", pa.array(undecoded, pa.string()))


def pixels_of(column: pa.ChunkedArray, size: int) -> np.ndarray:
    """Return the column image of `decode_column` as uint8 (n, size, size, 3). One chunk is not copied, and is
    read-only."""
    parts = []
    for chunk in column.chunks:
        _, bounds, data = chunk.buffers()
        start = int(np.frombuffer(bounds, dtype=np.int64, count=1, offset=8 * chunk.offset)[0])
        pixels = np.frombuffer(data, dtype=np.uint8, count=len(chunk) * size * size * 3, offset=start)
        parts.append(pixels.reshape(len(chunk), size, size, 3))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
