"""Zero-copy access to the values of Arrow binary columns, for any row order and chunking."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from landmark.data.arrow_binary import take_zero_copy, values

CHUNKS = st.lists(st.lists(st.binary(max_size=40), max_size=8), min_size=1, max_size=5)


@given(CHUNKS, st.randoms(), st.integers(0, 10), st.integers(0, 10))
def test_reordered_and_sliced_rows_keep_their_values(chunks, random, start, count):
    flat = [value for chunk in chunks for value in chunk]
    column = pa.chunked_array([pa.array([b"before", *chunk], pa.large_binary()).slice(1) for chunk in chunks])
    table = pa.table({"image": column, "row": np.arange(len(flat))})
    assert [bytes(value) for value in values(table["image"])] == flat
    order = np.array(random.sample(range(len(flat)), len(flat)), dtype=np.int64)
    mixed = pa.concat_tables([take_zero_copy(table, "image", order), take_zero_copy(table, "image", order[::-1])])
    expected = [*order.tolist(), *order[::-1].tolist()][start : start + count]
    part = mixed.slice(start, count)
    assert part["row"].to_pylist() == expected
    assert [bytes(value) for value in values(part["image"])] == [flat[row] for row in expected]


def test_values_are_not_copied():
    images = pa.array([bytes(1000), bytes(1000)], pa.large_binary())
    table = take_zero_copy(pa.table({"image": images, "row": [0, 1]}), "image", np.array([1, 0]))
    start = images.buffers()[2].address
    assert [np.frombuffer(value, dtype=np.uint8).ctypes.data - start for value in values(table["image"])] == [1000, 0]
