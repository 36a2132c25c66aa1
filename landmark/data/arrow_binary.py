"""Zero-copy reading and reordering of columns of large binary values."""

import itertools

import numpy as np
import pyarrow as pa

INLINE = 12
"""Maximum size of a value that an Arrow binary view stores inline, bytes."""
_VIEW = np.dtype([("size", "<i4"), ("start", "V4"), ("buffer", "<i4"), ("offset", "<i4")])


def take_zero_copy(table: pa.Table, column: str, order: np.ndarray) -> pa.Table:
    """Return the table's rows in an order, int64 (n,), without copying the values of one column (large binary, no
    nulls).

    That column becomes a column of binary views. Its buffers stay in memory as long as it is held.
    """
    source = table[column].cast(pa.binary_view()).combine_chunks()
    _, views, *data = source.buffers()
    taken = np.frombuffer(views, dtype=_VIEW)[source.offset : source.offset + len(source)][order]
    values = pa.Array.from_buffers(pa.binary_view(), len(order), [None, pa.py_buffer(taken), *data])
    return table.drop_columns([column]).combine_chunks().take(order).append_column(column, values)


def values(column: pa.ChunkedArray) -> list[memoryview]:
    """Return the values of a column of large binary or binary views, no nulls, without copying."""
    return [value for chunk in column.chunks for value in _values(chunk)]


def _values(chunk: pa.Array) -> list[memoryview]:
    _, first, *data = (buffer and memoryview(buffer).cast("B") for buffer in chunk.buffers())
    rows = slice(chunk.offset, chunk.offset + len(chunk))
    if not pa.types.is_binary_view(chunk.type):
        bounds = np.frombuffer(first, dtype=np.int64)[chunk.offset : rows.stop + 1].tolist()
        return [data[0][start:stop] for start, stop in itertools.pairwise(bounds)]
    views = np.frombuffer(first, dtype=_VIEW)[rows]
    places = zip(views["size"].tolist(), views["buffer"].tolist(), views["offset"].tolist(), strict=True)
    return [
        data[buffer][offset : offset + size] if size > INLINE else first[16 * row + 4 : 16 * row + 4 + size]
        for row, (size, buffer, offset) in enumerate(places, start=rows.start)
    ]
