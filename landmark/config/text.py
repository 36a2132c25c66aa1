"""Text files from the user. The byte order mark gives the encoding, else it is UTF-8. Errors are one line with file and
line number."""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from landmark.config.errors import UserError

ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # starts with the mark of UTF-16, so it is tested first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
DELIMITERS = (",", ";", "\t")
AS_UTF8 = "save the file as UTF-8 text"


def encoding_of(data: bytes) -> tuple[str, int]:
    """Return the encoding of a file from its first bytes (4 are enough), and the length of its byte order mark."""
    for mark, encoding in ENCODINGS:
        if data.startswith(mark):
            return encoding, len(mark)
    return "utf-8", 0


def decode_text(data: bytes, source: str) -> str:
    """Return a file's text with normalized line ends. Raises UserError with `source` and the line that cannot be
    decoded."""
    encoding, start = encoding_of(data)
    try:
        text = data[start:].decode(encoding)
    except UnicodeDecodeError as error:
        before = data[start : start + error.start].decode(encoding, errors="replace")
        line, byte = _unified(before).count("\n") + 1, data[start + error.start]
        raise UserError(f"{source}: line {line}: byte 0x{byte:02x} is not {encoding.upper()}; {AS_UTF8}") from None
    text = _unified(text)
    if (null := text.find("\0")) >= 0:
        raise UserError(f"{source}: line {text.count(chr(10), 0, null) + 1}: contains a null byte; {AS_UTF8}")
    return text


def read_text(path: Path, source: str, what: str = "file") -> str:
    """Return the text of a file on this machine. Raises UserError with `source` if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{source}: cannot read the {what} ({error.strerror}); check its path and permissions"
        ) from None
    return decode_text(data, source)


def filled_lines(text: str) -> list[tuple[int, str]]:
    """Return the lines that are not blank, stripped, each with its number from 1."""
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def csv_rows(text: str, source: str, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Return the stripped cells of these columns for each row that is not blank, with the row's line number.

    The separator is a comma, or a semicolon or tab if the header has no comma. Raises UserError with `source` and the
    line for a missing or repeated column, a row with another number of cells, or an unclosed quote.
    """
    lines = filled_lines(text)
    if not lines:
        raise UserError(f"{source}: empty; expected a CSV file with the columns {', '.join(columns)}")
    delimiter = next((mark for mark in DELIMITERS if mark in lines[0][1]), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    places: list[int] = []
    rows: list[tuple[int, list[str]]] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return rows
        except csv.Error as error:
            raise UserError(f"{source}: line {line}: {error}; check the quotes in this line") from None
        if not any(cells):
            continue
        if header is None:
            header, places = cells, _places(cells, source, line, columns)
            continue
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise UserError(f"{source}: line {line}: {len(cells)} cells; expected {len(header)}: {', '.join(header)}")
        rows.append((line, [cells[place] for place in places]))


def _places(header: list[str], source: str, line: int, columns: Sequence[str]) -> list[int]:
    """Return the positions of the columns in a header."""
    for column in columns:
        if header.count(column) != 1:
            found = f"{header.count(column)} columns" if column in header else "no column"
            raise UserError(
                f"{source}: line {line}: {found} {column!r} among {', '.join(header)}; "
                f"expected a CSV file with the columns {', '.join(columns)}"
            )
    return [header.index(column) for column in columns]


def _unified(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
