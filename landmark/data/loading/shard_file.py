"""Shards of a dataset: one request fetches neighboring row groups, and a footer is fetched once."""

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from landmark.data.buffers import BufferPool
from landmark.storage import Location
from landmark.storage.ranges import FileReplaced, Tail, read_into, read_range, read_tail

T = TypeVar("T")

COLUMNS = ("label", "image")
TAIL_BYTES = 64 << 10
"""Bytes of the first request for a shard, as many as Parquet reads for a footer. Few footers are longer."""
FOOTER_END = 8
"""Bytes after the footer: its length, uint32, and the magic bytes PAR1."""
IDLE_BUFFERS = 4
_BUFFERS = BufferPool(IDLE_BUFFERS)
"""Memory of requests."""


@dataclass(frozen=True)
class Footer:
    """The end of a shard, and the location of its row groups. It is kept as bytes: parsed, 600 footers of 5 columns
    would take ten times the memory."""

    tail: Tail
    starts: np.ndarray
    """First byte of COLUMNS in each row group, int64 (row groups,)."""
    stops: np.ndarray
    """End of COLUMNS in each row group, exclusive, int64 (row groups,)."""
    verified: np.ndarray
    """Whether the checksums of each row group were compared, bool (row groups,)."""

    @classmethod
    def read(cls, shard: Location) -> "Footer":
        """Fetch the footer of a shard. Raises pa.ArrowInvalid if it is corrupt."""
        tail = read_tail(shard, TAIL_BYTES)
        length = FOOTER_END + int.from_bytes(tail.data[-FOOTER_END:-4], "little")
        if len(tail.data) < length <= tail.size:
            rest = read_range(shard, tail.size - length, tail.size - len(tail.data), tail.version)
            tail = Tail(data=rest + tail.data, size=tail.size, version=tail.version)
        bounds = _parsed(lambda: _bounds(pq.read_metadata(pa.PythonFile(_Segments(tail), "r"))))
        return cls(tail=tail, starts=bounds[:, 0], stops=bounds[:, 1], verified=np.zeros(len(bounds), dtype=bool))


class ShardFile:
    """A shard that is read by row groups. Thread-safe."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._footer: Footer | None = None
        self._loading = threading.Lock()

    @property
    def size(self) -> int | None:
        """Size of the file when it was read, bytes. None if it was not read."""
        return None if self._footer is None else self._footer.tail.size

    def read(self, row_groups: Sequence[int]) -> list[pa.Table]:
        """Return COLUMNS of neighboring row groups, in ascending order, with one request. Thread-safe.

        The checksums of a row group are compared when this version of the shard is read for the first time.

        Raises NotFound or another StorageError if the storage fails. Raises pa.ArrowInvalid if the shard is corrupt.
        """
        known = self._footer
        try:
            return self._read(row_groups, known or self._load())
        except (FileReplaced, pa.ArrowInvalid) as error:
            if known is None:
                raise pa.ArrowInvalid(str(error)) from None
        # The shard may have been replaced since its footer was read.
        with self._loading:
            if self._footer is known:
                self._footer = None
        try:
            return self._read(row_groups, self._load())
        except FileReplaced as error:
            raise pa.ArrowInvalid(str(error)) from None

    def _load(self) -> Footer:
        with self._loading:
            if self._footer is None:
                self._footer = Footer.read(self.location)
            return self._footer

    def _read(self, row_groups: Sequence[int], footer: Footer) -> list[pa.Table]:
        if row_groups[-1] >= len(footer.starts):
            raise pa.ArrowInvalid(f"has {len(footer.starts)} row groups; row group {row_groups[-1]} was planned")
        start, stop = int(footer.starts[row_groups[0]]), int(footer.stops[row_groups[-1]])
        source = _Segments(footer.tail)
        if start < source.tail_start:
            memory = _BUFFERS.take((stop - start,)).data
            read_into(self.location, start, memory, footer.tail.version)
            source.add(start, memory)
        groups = list(row_groups)
        # Checksums take as long as the rest of reading. They find damage on a disk or in a transfer to it.
        verify = not footer.verified[groups].all()

        def parse() -> list[pa.Table]:
            file = pq.ParquetFile(pa.PythonFile(source, "r"), pre_buffer=False, page_checksum_verification=verify)
            return [file.read_row_group(number, columns=list(COLUMNS), use_threads=False) for number in groups]

        tables = _parsed(parse)
        footer.verified[groups] = True
        return tables


class _Segments(io.RawIOBase):
    """A file of which only some bytes are in memory: its tail and at most one other range."""

    def __init__(self, tail: Tail) -> None:
        self._tail = memoryview(tail.data)
        self._size = tail.size
        self.tail_start = tail.size - len(tail.data)
        self._start = self.tail_start
        self._range = memoryview(b"")
        self._position = 0

    def add(self, start: int, data: memoryview) -> None:
        """Add a range that starts before the tail."""
        self._start, self._range = start, data

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, count: int = -1) -> memoryview:  # without a copy
        """Return the next bytes. Raises OSError if they are not in memory."""
        start = self._position
        stop = self._size if count is None or count < 0 else min(start + count, self._size)
        self._position = max(start, stop)
        if start >= self.tail_start:
            return self._tail[start - self.tail_start : stop - self.tail_start]
        if start < self._start or stop > self._start + len(self._range):
            raise OSError(f"bytes {start:,} to {stop:,} are outside the row group")
        return self._range[start - self._start : stop - self._start]


def _bounds(metadata: pq.FileMetaData) -> np.ndarray:
    """Return start and end of COLUMNS in each row group, int64 (row groups, 2)."""
    names = metadata.schema.names
    if missing := [name for name in COLUMNS if name not in names]:
        raise pa.ArrowInvalid(f"has no column {missing[0]}")
    bounds = np.zeros((metadata.num_row_groups, 2), dtype=np.int64)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(names.index(name)) for name in COLUMNS]
        starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
        bounds[number] = (
            min(starts),
            max(start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)),
        )
    return bounds


def _parsed(parse: Callable[[], T]) -> T:
    """Parse bytes in memory. Raises pa.ArrowInvalid for anything corrupt, for which pyarrow also raises OSError."""
    try:
        return parse()
    except (OSError, OverflowError) as error:
        raise pa.ArrowInvalid(str(error)) from None
