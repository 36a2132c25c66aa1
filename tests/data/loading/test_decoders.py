"""Decoding threads and decoded columns: identical pixels, in memory that no earlier batch still uses."""

import gc

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark.config import AugmentConfig, LoaderConfig
from landmark.data.buffers import BufferPool
from landmark.data.loading.decoders import (
    DECODE_BYTES,
    DecodedColumn,
    TableDecoder,
    ThreadDecoder,
    batches_ahead,
    decode_column,
)
from tests.support.packed import picture

AUGMENT = AugmentConfig(randaugment_ops=2)


def batch(rows: int) -> pa.Table:
    """A batch whose third image is broken, sliced from a larger table with several chunks."""
    images = [b"broken" if n == 4 else picture(n % 4, n, 40) for n in range(rows + 4)]
    visits = np.arange(rows + 4) * 7
    parts = [
        pa.table({"image": pa.array(images[span], pa.large_binary()), "visit": visits[span], "label": visits[span]})
        for span in (slice(0, 5), slice(5, None))
    ]
    return pa.concat_tables(parts).slice(2, rows)


def test_a_decoded_column_has_the_pixels_of_threads():
    decoder = ThreadDecoder(LoaderConfig(decode_threads=2), AUGMENT, 5, largest=(10, 48))
    try:
        for rows in (9, 10, 5):
            pixels, faults = decoder.submit(batch(rows), 3, 48).result()
            column = decode_column(batch(rows), AUGMENT, 5, 3, 48)
            for table in (column, pa.concat_tables([column.slice(0, 4), column.slice(4)])):
                other, other_faults = DecodedColumn().submit(table, 3, 48).result()
                assert pixels.dtype == np.uint8 and np.array_equal(pixels, other)
                assert list(faults) == [2] and faults == other_faults
            rest = DecodedColumn().submit(column.slice(3), 3, 48).result()
            assert np.array_equal(rest[0], pixels[3:]) and not rest[1]
    finally:
        decoder.close()


def test_images_that_could_not_be_read_are_black_in_a_decoded_column():
    table = batch(9)
    lost = pa.array([None if row in (0, 8) else image for row, image in enumerate(table["image"].to_pylist())])
    column = decode_column(table.set_column(0, "image", lost.cast(pa.large_binary())), AUGMENT, 5, 3, 48)
    pixels, faults = DecodedColumn().submit(column, 3, 48).result()
    expected, _ = TableDecoder(AUGMENT, 5).decode(table, 3, 48)
    assert not pixels[[0, 8]].any() and np.array_equal(pixels[1:8], expected[1:8]) and list(faults) == [2]


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 70), st.integers(1, 12))
def test_a_batch_decoded_in_slices_equals_one_decoded_at_once(rows, threads):
    decoder = ThreadDecoder(LoaderConfig(decode_threads=threads), AUGMENT, 5, largest=(rows, 16))
    try:
        call = decoder.submit(batch(rows), 3, 16)
        pixels, faults = call.result()
    finally:
        decoder.close()
    expected, expected_faults = TableDecoder(AUGMENT, 5).decode(batch(rows), 3, 16)
    assert np.array_equal(pixels, expected) and faults == expected_faults and list(faults) == [2]
    assert call.done()


def test_memory_of_prefetched_batches_is_bounded_with_many_cpus():
    for rows, size, max_bytes in (
        (256, 224, 400 << 20),
        (1024, 512, DECODE_BYTES),
        (8, 224, 400 << 20),
        (1, 2048, DECODE_BYTES),
    ):
        decoder = ThreadDecoder(LoaderConfig(decode_threads=192), AUGMENT, 5, largest=(rows, size))
        decoder.close()
        assert decoder.ahead >= 1
        assert decoder.ahead * rows * size * size * 3 <= max_bytes
        # All threads have work if memory allows.
        slices = decoder.ahead * max(1, min(192, rows // 8))
        assert slices >= 192 or max_bytes == DECODE_BYTES
    assert batches_ahead(800, (256, 224)) * 256 * 224 * 224 * 3 <= DECODE_BYTES


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), max_size=30))
def test_a_buffer_in_use_is_not_reused(steps):
    buffers, held = BufferPool(16), []
    for number, (size, keep, view) in enumerate(steps):
        array = buffers.take((size, 2, 3))
        array[:] = number
        if keep:
            held.append((number, array[size // 2 :].transpose(2, 0, 1) if view else array))
        del array
        if number % 5 == 4 and held:
            held.pop(0)
    assert all((kept == number).all() for number, kept in held)


def test_a_released_buffer_is_reused():
    buffers = BufferPool(16)
    addresses = set()
    for rows in (64, 63, 64, 64, 63, 60):
        addresses.add(buffers.take((rows, 8, 8, 3)).ctypes.data)
        gc.collect()
    assert len(addresses) == 1
    assert buffers.take((8, 8, 8, 3)).ctypes.data not in addresses
