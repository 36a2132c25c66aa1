"""Sources of images: a table of what there is, and the bytes of each."""

import collections
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from pyarrow import fs as pafs

from landmark.config import SyntheticConfig, UserError
from landmark.data.synthetic import draw_image, plan_images
from landmark.storage import Location, locate

IGNORED_FILES = ("thumbs.db", "desktop.ini")


class Source(Protocol):
    """Where the images of a dataset come from. Small and picklable: workers get a copy."""

    def items(self) -> pa.Table:
        """Return one row an image: image_id, landmark_id, group, origin strings, and what `read` needs.

        A column split says where each image stays; its rows are then packed in their order.
        """
        ...

    def read(self, row: dict[str, Any]) -> bytes:
        """Return the bytes of one row's file."""
        ...

    def notes(self) -> list[str]:
        """Return what `items` found worth telling, a line each."""
        ...


@dataclass
class FolderSource:
    """Class folders: `<root>/<class>/<file>`. The file's name without its ending is its id, where that is unique."""

    root: Location
    groups: Location | None = None
    _notes: list[str] = field(default_factory=list)

    def items(self) -> pa.Table:
        """List the images; raises UserError for a missing root, no class folders, or an empty one."""
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
        """Return what was found on the way."""
        return self._notes

    def _files(self) -> list[str]:
        infos = self.root.infos(recursive=True)
        start = len(self.root.path.rstrip("/")) + 1
        folders = {info.path[start:].split("/", 1)[0] for info in infos if info.type == pafs.FileType.Directory}
        files = [info.path[start:] for info in infos if info.type == pafs.FileType.File]
        files = sorted(path for path in files if "/" in path and not _is_ignored(path))
        filled = {path.split("/", 1)[0] for path in files}
        if not filled:
            raise UserError(f"{self.root}: holds no folder with images; expected one folder a class: <class>/<image>")
        empty = sorted(name for name in folders - filled if not name.startswith("."))
        if empty:
            raise UserError(
                f"{self.root / empty[0]}: class folder without an image ({len(empty)} such); remove it or add images"
            )
        if len(filled) < 2:
            raise UserError(f"{self.root}: holds one class ({filled.pop()}); expected at least two")
        return files

    def _grouped(self, ids: list[str], paths: list[str]) -> pa.Array:
        """Return each image's group: of the groups file, else its own."""
        if self.groups is None:
            return pa.array(ids)
        known = read_groups(self.groups)
        stems = [_stem(path) for path in paths]
        absent = len(known.keys() - set(stems))
        if absent:
            self._notes.append(f"{self.groups}: {absent} ids have no image")
        return pa.array(["group:" + known[stem] if stem in known else i for i, stem in zip(ids, stems, strict=True)])


@dataclass
class SyntheticSource:
    """Procedurally drawn landmarks."""

    config: SyntheticConfig
    seed: int

    def items(self) -> pa.Table:
        """Plan the images."""
        table = plan_images(self.config, self.seed)
        origin = pa.array([f"drawn:{image_id}" for image_id in table["image_id"].to_pylist()])
        return table.append_column("origin", origin)

    def read(self, row: dict[str, Any]) -> bytes:
        """Draw one image."""
        return draw_image(row, self.config, self.seed)

    def notes(self) -> list[str]:
        """Nothing to tell."""
        return []


def read_groups(place: Location) -> dict[str, str]:
    """Read a groups file: CSV with the columns id and group."""
    try:
        with place.open_input() as stream:
            table = pacsv.read_csv(
                stream,
                convert_options=pacsv.ConvertOptions(
                    include_columns=["id", "group"], column_types={"id": pa.string(), "group": pa.string()}
                ),
            )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(
            f"{place}: not a groups file ({error}); expected a CSV file with the columns id, group"
        ) from None
    return dict(zip(table["id"].to_pylist(), table["group"].to_pylist(), strict=True))


def folder_source(path: str, groups: str | None) -> FolderSource:
    """Return the source of a folder's path and a groups file's."""
    return FolderSource(root=locate(path), groups=locate(groups) if groups else None)


def class_labels(items: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Return each item's dense label, int32 (n,), and the landmark ids in the order of the labels.

    Ids that are all whole numbers are ordered as numbers, others as text.
    """
    encoded = items["landmark_id"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
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
    """Return the shortest kind of id that is unique: file name, class and file name, or the whole path."""
    for ids in ([_stem(path) for path in paths], [path.rsplit(".", 1)[0] for path in paths]):
        if max(collections.Counter(ids).values()) == 1:
            return ids
    return paths
