"""Sources of images: a table of the images, and the bytes of each image."""

import collections
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from landmark.config import SubsetConfig, SyntheticConfig, UserError
from landmark.config.text import csv_rows, decode_text
from landmark.data.sources.gldv2 import SourceFaults
from landmark.data.sources.listing import list_files, nested_notes
from landmark.data.synthetic import plan_images, render_image
from landmark.storage import Location, NotFound, locate

NO_GROUP = frozenset({"null", "none", "nan", "na", "n/a", "#n/a", "<na>"})
"""Values of spreadsheets and data frames for an empty cell, in lower case."""
IGNORED_FILES = ("thumbs.db", "desktop.ini")


class Source(Protocol):
    """A source of the images of a dataset. Small and picklable, because each worker receives a copy."""

    def items(self) -> pa.Table:
        """Return one row per image: image_id, landmark_id, group, origin strings, and the columns that `read` requires.

        A column split contains the split of each image. Rows with this column are all packed in their order.
        """
        ...

    def read(self, row: dict[str, Any]) -> bytes:
        """Return the bytes of one row's file."""
        ...

    def notes(self) -> list[str]:
        """Return the notes of `items` for the user, one line each."""
        ...

    def state(self) -> dict[str, Any] | None:
        """Return the state of the source files to detect changes, as plain values. None if the source cannot change."""
        ...


@dataclass(kw_only=True, frozen=True)
class Listing:
    """Contents of a source."""

    items: pa.Table
    """One row per image, as from `Source.items`."""
    notes: list[str]
    """Notes for the user, one line each."""
    faults: SourceFaults = field(default_factory=SourceFaults)
    """Skipped rows of the source's tables."""
    names: pa.Table | None = None
    """landmark_id, name: the names of the landmarks, if published."""
    known: np.ndarray | None = None
    """For images in tars: sorted keys of all ids with a row, wanted or not, uint64 (rows,)."""


@runtime_checkable
class ListingSource(Source, Protocol):
    """A source that returns more than its items."""

    def listing(self) -> Listing:
        """Return the items and all further information."""
        ...


@dataclass
class FolderSource:
    """Class folders: `<root>/<class>/<file>`. The file name without its extension is the image id, if it is unique."""

    root: Location
    groups: Location | None = None
    output: Location | None = None
    """Location of the output dataset, which is skipped in the source."""
    _notes: list[str] = field(default_factory=list)
    _state: dict[str, Any] = field(default_factory=dict)

    def items(self) -> pa.Table:
        """List the images. Raises UserError for a missing root, no class folders, or an empty class folder."""
        paths = self._files()
        classes = [path.split("/", 1)[0] for path in paths]
        ids = _unique_ids(paths)
        return pa.table(
            {
                "image_id": pa.array(ids),
                "landmark_id": pa.array(classes),
                "group": self._grouped(ids, paths),
                "origin": pa.array(paths),
            }
        )

    def read(self, row: dict[str, Any]) -> bytes:
        """Read one file."""
        return (self.root / row["origin"]).read_bytes()

    def notes(self) -> list[str]:
        """Return the notes of the listing."""
        return self._notes

    def state(self) -> dict[str, Any]:
        """Return the state of the files last listed, or else of the current files, and of the groups file."""
        if not self._state:
            self._state = list_files(self.root, self.output).state
        return self._state | ({"groups": _digest(self.groups)} if self.groups is not None else {})

    def _files(self) -> list[str]:
        listed = list_files(self.root, self.output)
        self._notes, self._state = list(listed.notes), listed.state
        files = [path for path in listed.paths if "/" in path and not _is_ignored(path)]
        filled = {path.split("/", 1)[0] for path in files}
        if not filled:
            raise UserError(
                f"{self.root}: contains no folder with images; expected one folder per class: <class>/<image>"
            )
        self._notes += nested_notes(self.root, files)
        empty = sorted(listed.folders - filled)
        if empty:
            raise UserError(
                f"{self.root / empty[0]}: class folder without images ({len(empty)} such folders); remove it or add images"
            )
        if len(filled) < 2:
            raise UserError(f"{self.root}: contains one class ({filled.pop()}); expected at least two")
        return files

    def _grouped(self, ids: list[str], paths: list[str]) -> pa.Array:
        """Return each image's group, from the groups file or else its own."""
        if self.groups is None:
            return pa.array(ids)
        known = read_groups(self.groups)
        stems = [_stem(path) for path in paths]
        absent = len(known.keys() - set(stems))
        if absent:
            self._notes.append(f"{self.groups}: {absent} ids have no image")
        blank = sum(not group for group in known.values())
        if blank:
            self._notes.append(
                f"{self.groups}: {blank:,} of {len(known):,} images have no group; each is split independently"
            )
        groups = (known.get(stem, "") for stem in stems)
        return pa.array([f"group:{group}" if group else image for image, group in zip(ids, groups, strict=True)])


@dataclass
class SyntheticSource:
    """Procedurally generated landmarks."""

    config: SyntheticConfig
    seed: int

    def items(self) -> pa.Table:
        """Plan the images."""
        table = plan_images(self.config, self.seed)
        origin = pa.array([f"drawn:{image_id}" for image_id in table["image_id"].to_pylist()])
        return table.append_column("origin", origin)

    def read(self, row: dict[str, Any]) -> bytes:
        """Render one image."""
        return render_image(row, self.config, self.seed)

    def notes(self) -> list[str]:
        """Return no notes."""
        return []

    def state(self) -> None:
        """Return None, because the source cannot change."""
        return


def source_state(source: Source, subset: SubsetConfig) -> dict[str, Any] | None:
    """Return the state of a source's files and of a subset's list of landmarks, to detect changes.

    None if the source cannot change or no longer exists.
    """
    try:
        state = source.state()
        if state is None or subset.landmarks is None:
            return state
        return state | {"landmarks": _digest(locate(subset.landmarks))}
    except NotFound:
        return None


def changes(before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    """Return a description of the changes between two states of a source. Empty if no change is known."""
    if before is None or now is None or before == now:
        return ""
    if before.get("files") != now.get("files"):
        return f"{now.get('files'):,} files now, {before.get('files'):,} then"
    kinds = [kind for kind in ("groups", "landmarks") if before.get(kind) != now.get(kind)]
    return f"another {' and '.join(kinds)} file" if kinds else "same names, but different sizes or modification times"


def _digest(place: Location) -> str:
    return place.sha256()[0]


def read_groups(place: Location) -> dict[str, str]:
    """Return the group of each image that has one, from a CSV file with the columns id and group.

    An empty cell, or a value of NO_GROUP, is no group. Raises UserError with the line of a row without an id, or of a
    row that gives an image a second group.
    """
    text = decode_text(place.read_bytes(), place.uri)
    groups: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, (image, group) in csv_rows(text, place.uri, ("id", "group")):
        if not image:
            raise UserError(f"{place}: line {line}: the id is empty; add it, or remove the line")
        group = "" if group.lower() in NO_GROUP else group
        if image in groups and groups[image] != group:
            raise UserError(
                f"{place}: line {line}: {image!r} has the group {group!r}, but {groups[image]!r} in line {lines[image]}; "
                "remove one of the lines"
            )
        groups[image], lines[image] = group, line
    return groups


def folder_source(path: str, groups: str | None, output: Location | None = None) -> FolderSource:
    """Return the source for a folder and a groups file. output: the location of the packed dataset."""
    return FolderSource(root=locate(path), groups=locate(groups) if groups else None, output=output)


def class_labels(items: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Return each item's dense label, int32 (n,), and the landmark ids in the order of the labels.

    Ids that are all integers are sorted as numbers, others as text.
    """
    encoded = items["landmark_id"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.cast(pa.string()).to_pylist()
    as_numbers = all(name.isdecimal() for name in names)
    order = sorted(range(len(names)), key=lambda i: (int(names[i]), "") if as_numbers else (0, names[i]))
    rank = np.empty(len(names), dtype=np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32)
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], [names[i] for i in order]


def _is_ignored(path: str) -> bool:
    name = path.rsplit("/", 1)[1].lower()
    return name in IGNORED_FILES or any(part.startswith(".") for part in path.split("/"))


def _stem(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] or name


def _unique_ids(paths: list[str]) -> list[str]:
    """Return the shortest unique ids: file name, class and file name, or the complete path."""
    for ids in ([_stem(path) for path in paths], [path.rsplit(".", 1)[0] for path in paths]):
        if max(collections.Counter(ids).values()) == 1:
            return ids
    return paths
