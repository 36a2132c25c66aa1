"""Google Landmarks Dataset v2: reading of its published CSV files, with all faults counted and listed.

Formats: https://github.com/cvdfoundation/google-landmark. Image ids are 16 hexadecimal digits, landmark ids are
integers. Files have one row per image.
"""

import collections
import contextlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from landmark.config import UserError
from landmark.config.text import decode_text, encoding_of
from landmark.data.sources.resuming_stream import AccessDenied, ResumingStream, is_there, is_web, read_whole
from landmark.storage import Location, NotFound

LISTED_FAULTS = 100_000
BLOCK_BYTES = 16 << 20
_IMAGE_NAME = re.compile(r"(?:^|/)([0-9a-f]{16})\.jpg$")
_TAR = re.compile(r"images_(\d+)\.tar$")
_GOOD_ID = "^[0-9a-f]{16}$"


@dataclass
class SourceFaults:
    """Skipped rows: the number per reason, and the ids of the first ones."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    listed: list[tuple[str, str, str]] = field(default_factory=list)
    """image_id, origin, reason."""

    def add(self, reason: str, origin: str, ids: Iterable[str], count: int | None = None) -> None:
        """Count rows of one reason. `count` is their number if `ids` does not contain all of them."""
        names = list(ids)
        count = len(names) if count is None else count
        if not count:
            return
        self.counts[reason] += count
        free_places = LISTED_FAULTS - len(self.listed)
        self.listed += [(name, origin, reason) for name in names[: max(free_places, 0)]]

    def total(self) -> int:
        """Return the number of skipped rows."""
        return self.counts.total()

    def breakdown(self) -> str:
        """Return the reasons and their counts as text, the most frequent first."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())

    def check(self, rows: int, limit: float, source: str) -> None:
        """Raise UserError if the fraction of faults is above a limit."""
        if self.total() > limit * rows:
            fraction = self.total() / max(rows, 1)
            raise UserError(
                f"{source}: {fraction:.2%} of {rows:,} rows are faulty ({self.breakdown()}); the maximum is {limit:.2%}; "
                "fix the files, or increase gldv2.max_fault_fraction"
            )


def find(root: Location, name: str) -> Location:
    """Return the location of a metadata file, in the root folder or in its folder metadata."""
    for place in (root / name, root / "metadata" / name):
        if is_there(place):
            return place
    raise NotFound(
        f"{root}: contains neither {name} nor metadata/{name}; set gldv2.path to the folder of the CSV files"
    )


def read_images(root: Location, faults: SourceFaults) -> pa.Table:
    """Read train.csv: image_id string, landmark_id int64, one row per image, in the file's order.

    Some rows are skipped and added to `faults`:

    - rows with the wrong number of cells
    - rows with an id that is not 16 hexadecimal digits, or a landmark id that is not an integer
    - all rows of an id except the first
    """
    place = find(root, "train.csv")
    table = read_csv(place, ["id", "landmark_id"], faults)
    ids, landmarks = table["id"].combine_chunks(), table["landmark_id"].combine_chunks()
    good_id = pc.match_substring_regex(ids, _GOOD_ID)
    good_landmark = pc.match_substring_regex(landmarks, "^[0-9]{1,18}$")
    bad = pc.invert(pc.and_(good_id, good_landmark))
    if pc.any(bad).as_py():
        bad_landmark = pc.and_(good_id, pc.invert(good_landmark))
        for reason, mask in (("malformed id", pc.invert(good_id)), ("malformed landmark_id", bad_landmark)):
            faults.add(reason, place.uri, ids.filter(mask).to_pylist())
        keep = pc.invert(bad)
        ids, landmarks = ids.filter(keep), landmarks.filter(keep)
    first = first_occurrences(id_keys(ids))
    if len(first) < len(ids):
        again = np.ones(len(ids), dtype=bool)
        again[first] = False
        faults.add("duplicated id", place.uri, ids.filter(pa.array(again)).to_pylist())
        ids, landmarks = ids.take(first), landmarks.take(first)
    return pa.table({"image_id": ids, "landmark_id": landmarks.cast(pa.int64())})


def read_clean_ids(root: Location, faults: SourceFaults) -> np.ndarray:
    """Read train_clean.csv (landmark_id, image ids separated by spaces). Returns sorted id keys, uint64."""
    place = find(root, "train_clean.csv")
    table = read_csv(place, ["landmark_id", "images"], faults)
    ids = pc.list_flatten(pc.split_pattern(pc.utf8_trim_whitespace(table["images"].combine_chunks()), " "))
    return np.unique(id_keys(ids.filter(_good_ids(ids, place, faults))))


def _good_ids(ids: pa.Array, place: Location, faults: SourceFaults) -> pa.Array:
    """Return a mask of the ids that are 16 hexadecimal digits. The others are added to `faults`."""
    good = pc.match_substring_regex(ids, _GOOD_ID)
    bad = pc.invert(good)
    if pc.any(bad).as_py():
        faults.add("malformed id", place.uri, ids.filter(bad).to_pylist())
    return good


def read_attribution(root: Location, faults: SourceFaults) -> pa.Table:
    """Read train_attribution.csv: image_id string, author and license dictionary-encoded."""
    place = find(root, "train_attribution.csv")
    table = read_csv(place, ["id", "author", "license"], faults, encoded=("author", "license"))
    table = table.filter(_good_ids(table["id"].combine_chunks(), place, faults))
    return table.rename_columns(["image_id", "author", "license"])


def read_categories(root: Location, faults: SourceFaults) -> pa.Table:
    """Read the names of the landmarks: landmark_id int64, name string, and supercategory if published.

    The hierarchical file is preferred to the category file. A category is the URL of a Wikimedia Commons category. Its
    last part is the name.
    """
    for name, columns in (
        ("train_label_to_hierarchical.csv", ["landmark_id", "category", "supercategory"]),
        ("train_label_to_category.csv", ["landmark_id", "category"]),
    ):
        try:
            place = find(root, name)
        except NotFound:
            continue
        table = read_csv(place, columns, faults)
        names = pc.replace_substring_regex(table["category"].combine_chunks(), "^.*Category:", "")
        table = table.set_column(1, "name", pc.replace_substring(names, "_", " "))
        good = pc.match_substring_regex(table["landmark_id"], "^[0-9]{1,18}$")
        table = table.filter(good)
        return table.set_column(0, "landmark_id", table["landmark_id"].cast(pa.int64()))
    return pa.table({"landmark_id": pa.array([], pa.int64()), "name": pa.array([], pa.string())})


def read_solution(root: Location, faults: SourceFaults) -> pa.Table:
    """Read recognition_solution_v2.1.csv: image_id, landmarks list<int64> (empty without a landmark), usage.

    Rows with the usage Ignored are included. The evaluation must skip them.
    """
    place = find(root, "recognition_solution_v2.1.csv")
    table = read_csv(place, ["id", "landmarks", "Usage"], faults)
    words = pc.split_pattern(pc.utf8_trim_whitespace(table["landmarks"].combine_chunks()), " ")
    values = pc.list_flatten(words)
    numbers = _landmark_numbers(pc.if_else(pc.equal(values, ""), None, values), place)
    lists = pa.ListArray.from_arrays(words.offsets, numbers)
    empty = pc.equal(table["landmarks"].combine_chunks(), "")
    none = pa.scalar([], pa.list_(pa.int64()))
    landmarks = pc.if_else(empty, none, lists)
    return pa.table({"image_id": table["id"], "landmarks": landmarks, "usage": table["Usage"]})


def _landmark_numbers(values: pa.Array, place: Location) -> pa.Array:
    """Return landmark ids as integers. Nulls stay null."""
    bad = values.filter(pc.invert(pc.match_substring_regex(values, "^[0-9]{1,18}$")))
    if len(bad):
        raise UserError(
            f"{place}: the landmark id {bad[0].as_py()!r} is not an integer ({len(bad)} such ids); download it again"
        )
    return values.cast(pa.int64())


def read_csv(place: Location, columns: list[str], faults: SourceFaults, *, encoded: tuple[str, ...] = ()) -> pa.Table:
    """Read columns of a CSV file as strings. Rows with the wrong number of cells are added to `faults`."""
    skipped: list[str] = []

    def skip(row: pacsv.InvalidRow) -> str:
        skipped.append((row.text or "")[:80])
        return "skip"

    kinds = {name: pa.dictionary(pa.int32(), pa.string()) if name in encoded else pa.string() for name in columns}
    try:
        with _opened(place) as (stream, encoding):
            table = pacsv.read_csv(
                stream,
                read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES, encoding=encoding),
                parse_options=pacsv.ParseOptions(invalid_row_handler=skip),
                convert_options=pacsv.ConvertOptions(
                    include_columns=columns, column_types=kinds, strings_can_be_null=False
                ),
            )
    except pa.ArrowKeyError as error:
        raise UserError(f"{place}: {error}; expected the columns {', '.join(columns)}") from None
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise _unreadable(place, error) from None
    if skipped:
        faults.add("malformed row", place.uri, skipped)
    return table.unify_dictionaries().combine_chunks() if encoded else table.combine_chunks()


@contextlib.contextmanager
def _opened(place: Location) -> Iterator[tuple[Any, str]]:
    """Open a file for sequential reading, and detect its encoding. A remote file is read by a stream that
    reconnects."""
    if place.local_path() is not None:
        with place.open_input() as stream:
            encoding, mark = encoding_of(stream.read(4))
            stream.seek(mark)
            yield stream, encoding
    else:
        with io.BufferedReader(ResumingStream(place)) as stream:
            encoding, mark = encoding_of(stream.peek(4)[:4])
            stream.read(mark)
            yield stream, encoding


def _unreadable(place: Location, error: Exception) -> UserError:
    """Return the error for a CSV file that cannot be read, with the line number if it is known."""
    try:
        text = decode_text(read_whole(place), place.uri)
    except UserError as found:
        return found
    for number, line in enumerate(text.split("\n"), 1):
        if line.count('"') % 2:
            return UserError(f"{place}: line {number}: a quote is not closed; download the file again")
    reason = " ".join(str(error).split())
    return UserError(f"{place}: not a readable CSV file ({reason}); download it again")


def image_path(image_id: str) -> str:
    """Return the path of an image in the extracted tree, relative to the root: train/a/b/c/<id>.jpg."""
    return f"train/{image_id[0]}/{image_id[1]}/{image_id[2]}/{image_id}.jpg"


def image_paths(ids: pa.Array) -> pa.Array:
    """Return `image_path` of each id."""
    letters = [pc.utf8_slice_codeunits(ids, place, place + 1) for place in range(3)]
    name = pc.binary_join_element_wise(ids, ".jpg", "")
    return pc.binary_join_element_wise("train", *letters, name, "/")


def image_id(name: str) -> str | None:
    """Return the image id of a file name that ends in <16 hexadecimal digits>.jpg, else None."""
    found = _IMAGE_NAME.search(name)
    return found[1] if found else None


def id_keys(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return ids of 16 hexadecimal digits as integers, uint64 (n,), which sort and compare fast."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    lengths = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    if not (lengths == 16).all():
        bad = ids[int(np.flatnonzero(lengths != 16)[0])].as_py()
        raise UserError(f"image id {bad!r}: expected 16 hexadecimal digits")
    text = np.frombuffer(ids.buffers()[2], dtype=np.uint8)[ids.offset * 16 : (ids.offset + len(ids)) * 16]
    digits = _HEX[text].reshape(-1, 16)
    keys = np.zeros(len(ids), dtype=np.uint64)
    for column in range(16):
        keys = (keys << np.uint64(4)) | digits[:, column]
    return keys


def first_occurrences(keys: np.ndarray) -> np.ndarray:
    """Return the positions of the first row per key, ascending."""
    _, first = np.unique(keys, return_index=True)
    return np.sort(first)


_HEX = np.zeros(256, dtype=np.uint64)
for _value, _digit in enumerate("0123456789abcdef"):
    _HEX[ord(_digit)] = _value


def tar_images(root: Location, tars: int) -> list[str] | None:
    """Return the tars of the training images, as paths relative to the root. None if there are none.

    Folders on a web server cannot be listed. There, the published numbering is used: `tars` files from
    train/images_000.tar.
    """
    if is_web(root):
        names = [f"train/images_{number:03d}.tar" for number in range(tars)]
        return names if is_there(root / names[0]) else None
    try:
        found = [name for name in (root / "train").names() if name.startswith("images_") and name.endswith(".tar")]
    except NotFound:
        return None
    return [f"train/{name}" for name in found] or None


def missing_tars(root: Location, tars: Iterable[str]) -> list[str]:
    """Return the tars of the training images that are missing although others imply them, as paths relative to the
    root.

    The first number up to the last one found is implied, and each tar with a published MD5 file.
    """
    there = {match[0]: int(match[1]) for name in tars if (match := _TAR.search(name))}
    implied = {f"images_{number:03d}.tar" for number in range(max(there.values(), default=-1) + 1)}
    if not is_web(root):
        with contextlib.suppress(NotFound):
            names = (root / "md5sum/train").names()
            implied |= {f"{match[1]}.tar" for name in names if (match := re.fullmatch(r"md5\.(images_\d+)\.txt", name))}
    return [f"train/{name}" for name in sorted(implied - there.keys())]


def published_md5(root: Location, tar: str) -> str | None:
    """Return the MD5 in md5sum/train/md5.images_NNN.txt of train/images_NNN.tar. None without that file."""
    folder, name = tar.rsplit("/", 1)
    place = root / f"md5sum/{folder}/md5.{name.removesuffix('.tar')}.txt"
    try:
        data = read_whole(place)
    except (NotFound, AccessDenied):
        return None
    words = decode_text(data, place.uri).split()
    if not words or not re.fullmatch("[0-9a-fA-F]{32}", words[0]):
        raise UserError(
            f"{place}: expected an MD5 of 32 hexadecimal digits; download it again, or set gldv2.check_md5 off"
        )
    return words[0].lower()
