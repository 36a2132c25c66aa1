"""Listing of the files below a folder: each file once, links followed but never in a circle, one folder left out."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs as pafs

from landmark.config import UserError
from landmark.storage import Location, NotFound

SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"})
"""Names of folders, in lower case, that hold a split and no class."""


@dataclass(kw_only=True, eq=False)
class Files:
    """The files below a folder."""

    paths: list[str] = field(default_factory=list)
    """Paths below the folder, sorted."""
    folders: set[str] = field(default_factory=set)
    """Names of the folders directly below it."""
    notes: list[str] = field(default_factory=list)
    """What is left out, a line each."""
    state: dict[str, Any] = field(default_factory=dict)
    """What tells these files from others, by names, sizes and times of change: files, bytes, digest."""


def list_files(root: Location, without: Location | None = None) -> Files:
    """List the files below a folder, on a disk or in object storage.

    Hidden files and folders (.name) are left out. On a disk each file is listed once, under its own path if it has one below
    the folder, and else under that of a link to it; a link to a folder that contains it is not followed. without: a folder of
    which nothing is listed. Raises NotFound for a missing folder and UserError for one that cannot be read or is a file.
    """
    local = root.local_path()
    if local is None:
        return _remote_files(root, without)
    if not local.exists():
        raise NotFound(f"{root}: no such file or folder; check the path")
    if not local.is_dir():
        raise UserError(f"{root}: is a file; give a folder")
    skipped = without.local_path() if without is not None else None
    return _Walk(root, str(local), os.path.realpath(skipped) if skipped is not None else None).files()


def nested_notes(root: Location, paths: list[str]) -> list[str]:
    """Return a note on images that lie deeper than one class's folder; raises UserError where the folders are those of splits.

    paths: of images below the root, whose first folder is their class.
    """
    nested = [path for path in paths if path.count("/") > 1]
    classes = {path.split("/", 1)[0] for path in paths}
    splits = sorted(name for name in {path.split("/", 1)[0] for path in nested} if name.lower() in SPLIT_FOLDERS)
    if len(splits) > 1 or (splits and set(splits) == classes):
        raise UserError(
            f"{root}: holds folders of splits ({', '.join(splits)}) with folders of classes in them; expected one folder per "
            "class: put the images of each class into one folder (split.val and split.test divide them)"
        )
    if not nested:
        return []
    return [
        f"{len(nested):,} images lie deeper than their class's folder and belong to that class, such as {root / nested[0]}"
    ]


def shallow_state(root: Location, folders: Iterable[str]) -> dict[str, Any]:
    """Return the state of the files directly in folders below a root, "" for itself; a folder that is missing has none."""
    found = {}
    for folder in folders:
        with contextlib.suppress(NotFound):
            for info in (root / folder if folder else root).infos(recursive=False):
                if info.type == pafs.FileType.File:
                    found[f"{folder}/{info.base_name}"] = info.size or 0, info.mtime_ns or 0
    return _state(found)


def holds_dataset(place: Location) -> bool:
    """Return whether there is a packed or cleaned dataset at a place."""
    return not place.is_file() and (place / "manifest.json").exists()


def _remote_files(root: Location, without: Location | None) -> Files:
    start = len(root.inner_path.rstrip("/")) + 1
    skipped = None if without is None else f"{without.inner_path.rstrip('/')}/"
    found: dict[str, tuple[int, int]] = {}
    folders = set()
    for info in root.infos(recursive=True):
        path = info.path[start:]
        if _is_hidden(path) or (skipped is not None and f"{info.path}/".startswith(skipped)):
            continue
        if info.type == pafs.FileType.Directory:
            folders.add(path.split("/", 1)[0])
        elif info.type == pafs.FileType.File:
            found[path] = info.size or 0, info.mtime_ns or 0
    return Files(paths=sorted(found), folders=folders, state=_state(found))


class _Walk:
    """Goes through a folder of this machine's disk: folders and files first, then what links lead to."""

    def __init__(self, root: Location, start: str, without: str | None) -> None:
        self.root, self.start, self.without = root, start, without
        self.found: dict[str, tuple[int, int]] = {}
        self.seen: set[str] = set()
        """Real paths of the files listed."""
        self.walked: set[str] = set()
        """Real paths of the folders that were gone through."""
        self.links: list[tuple[str, str]] = []
        """Links to be followed: their path below the folder, and the real path of the folder that they are in."""
        self.circles: list[str] = []
        self.repeated: list[str] = []
        self.unnamed: list[str] = []

    def files(self) -> Files:
        try:
            self._go(os.path.realpath(self.start), "")
            while self.links:
                links, self.links = sorted(self.links), []
                for path, folder in links:
                    self._follow(path, folder)
        except OSError as error:
            place = error.filename or self.start
            raise UserError(f"{place}: cannot be listed ({error.strerror}); check its permissions") from None
        notes = [
            self._note(self.circles, "links to a folder that contains them are not followed"),
            self._note(self.repeated, "links to files or folders that are listed already are left out"),
            self._note(self.unnamed, "files and folders whose names are not UTF-8 are left out; rename them"),
        ]
        folders = {path.split("/", 1)[0] for path in self.found if "/" in path}
        folders |= {entry.name for entry in os.scandir(self.start) if self._is_folder(entry)}
        return Files(
            paths=sorted(self.found), folders=folders, notes=[note for note in notes if note], state=_state(self.found)
        )

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder directly below the root counts, though it may hold no file."""
        named = not entry.name.startswith(".") and _is_text(entry.name)
        return named and entry.is_dir() and not entry.is_symlink() and os.path.realpath(entry.path) != self.without

    def _note(self, paths: list[str], what: str) -> str:
        if not paths:
            return ""
        first = self.root / paths[0].encode(errors="surrogateescape").decode(errors="replace")
        return f"{len(paths):,} {what}: {first}" + (" and others" if len(paths) > 1 else "")

    def _go(self, real: str, prefix: str) -> None:
        """List what is in a folder and below it; real: its real path, prefix: its path below the root, ending with /."""
        pending = [(real, prefix)]
        while pending:
            folder, before = pending.pop()
            if folder in self.walked or folder == self.without:
                continue
            self.walked.add(folder)
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = before + entry.name
                    if entry.name.startswith("."):
                        continue
                    if not _is_text(entry.name):
                        self.unnamed.append(path)
                    elif entry.is_symlink():
                        self.links.append((path, folder))
                    elif entry.is_dir():
                        pending.append((entry.path, f"{path}/"))
                    elif entry.is_file():
                        self._add(path, entry.path, entry.stat())

    def _follow(self, path: str, folder: str) -> None:
        """List what a link leads to; folder: the real path of the folder that the link is in."""
        target = os.path.realpath(os.path.join(folder, path.rsplit("/", 1)[-1]))
        if os.path.isdir(target):
            if f"{folder}/".startswith(f"{target.rstrip('/')}/"):
                self.circles.append(path)
            elif target in self.walked:
                self.repeated.append(path)
            else:
                self._go(target, f"{path}/")
        elif os.path.isfile(target):
            self._add(path, target, os.stat(target))
        else:  # it leads nowhere: reading it is the error that names it
            self.found[path] = 0, 0

    def _add(self, path: str, real: str, status: os.stat_result) -> None:
        if real in self.seen:
            self.repeated.append(path)
            return
        self.seen.add(real)
        self.found[path] = status.st_size, status.st_mtime_ns


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _state(found: dict[str, tuple[int, int]]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path, (size, changed) in sorted(found.items()):
        digest.update(f"{path}\0{size}\0{changed}\n".encode())
    return {"files": len(found), "bytes": sum(size for size, _ in found.values()), "digest": digest.hexdigest()}
