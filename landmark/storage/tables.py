"""Tables in storage: reading and writing of Parquet files, writing of CSV files."""

import io
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from landmark.config import UserError
from landmark.storage.location import Location
from landmark.storage.retry import retrying

T = TypeVar("T")

_DAMAGE = ("CRC checksum", "thrift", "end of stream", "Unexpected end", "Corrupt", "corrupt", "Parquet", "row group")


def read_table(location: Location, **options: Any) -> pa.Table:
    """Read a Parquet file completely. `options` go to `pyarrow.parquet.read_table`."""

    def read() -> pa.Table:
        with location.open_once() as stream:
            return pq.read_table(stream, **options)

    return _named(location, read)


def read_parquet(location: Location, read: Callable[[pq.ParquetFile], T]) -> T:
    """Open a Parquet file and return the result of `read`. Transient storage errors are retried with a newly opened
    file."""

    def opened() -> T:
        with location.open_once() as stream:
            return read(pq.ParquetFile(stream, page_checksum_verification=True))

    return _named(location, opened)


def _named(location: Location, read: Callable[[], T]) -> T:
    """Run a reader of a Parquet file. Raises UserError with the file's name if the file is corrupt."""
    try:
        return retrying(location.uri, damage_marked(read))
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{location}: not a readable Parquet file ({reason}); prepare the dataset again") from None


def damage_marked(read: Callable[[], T]) -> Callable[[], T]:
    """Return a reader of Parquet that raises pa.ArrowInvalid for all corrupt content.

    pyarrow raises OSError both for corrupt content and for storage errors. Only a storage error, which may be
    transient, has an error number or names the storage client.
    """

    def marked() -> T:
        try:
            return read()
        except OSError as error:
            text = str(error)
            if error.errno is None and "AWS Error" not in text and any(word in text for word in _DAMAGE):
                raise pa.ArrowInvalid(text) from None
            raise

    return marked


def write_table(location: Location, table: pa.Table) -> None:
    """Publish a table as one Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    location.write_bytes(buffer.getvalue())


def write_csv(place: Location, table: pa.Table) -> None:
    """Write a table as CSV."""
    buffer = io.BytesIO()
    pacsv.write_csv(table, buffer, pacsv.WriteOptions(quoting_style="needed"))
    place.write_bytes(buffer.getvalue())
