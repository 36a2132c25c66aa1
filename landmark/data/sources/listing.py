"""Listing of the files in a folder tree. Each file is listed once, and links are followed without cycles."""

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
"""Names of folders, in lower case, that are splits and not classes."""


@dataclass(kw_only=True, eq=False)
class Files:
    """The files in a folder tree."""

    paths: list[str] = field(default_factory=list)
    """Paths relative to the folder, sorted."""
    folders: set[str] = field(default_factory=set)
    """Names of the folders directly below it."""
    notes: list[str] = field(default_factory=list)
    """One line per kind of skipped file."""
    state: dict[str, Any] = field(default_factory=dict)
    """Number, total bytes and digest of names, sizes and modification times, to detect changes."""


def list_files(root: Location, without: Location | None = None) -> Files:
    """List the files in a folder tree, on a disk or in object storage.

    Hidden files and folders (.name) are skipped. On a disk, each file is listed once, under its own path if that is in
    the tree, else under the path of a link to it. A link to a folder that contains it is not followed.

    without: a folder to skip. Raises NotFound for a missing folder, and UserError for a file or an unreadable folder.
    """
    local = root.local_path()
    if local is None:
        return _remote_files(root, without)
    if not local.exists():
        raise NotFound(f"{root}: no such file or folder; check the path")
    if not local.is_dir():
        raise UserError(f"{root}: is a file; expected a folder")
    skipped = without.local_path() if without is not None else None
    return _Walk(root, str(local), os.path.realpath(skipped) if skipped is not None else None).files()


def nested_notes(root: Location, paths: list[str]) -> list[str]:
    """Return a note on images in subfolders of a class folder. Raises UserError if the folders are splits.

    paths: paths of images relative to the root. The first folder is the class.
    """
    nested = [path for path in paths if path.count("/") > 1]
    classes = {path.split("/", 1)[0] for path in paths}
    splits = sorted(name for name in {path.split("/", 1)[0] for path in nested} if name.lower() in SPLIT_FOLDERS)
    if len(splits) > 1 or (splits and set(splits) == classes):
        raise UserError(
            f"{root}: contains folders of splits ({', '.join(splits)}) that contain folders of classes; expected one folder per "
            "class; move the images of each class into one folder (split.val and split.test split them)"
        )
    if not nested:
        return []
    return [
        f"{len(nested):,} images are in subfolders of a class folder and belong to that class, such as {root / nested[0]}"
    ]


def shallow_state(root: Location, folders: Iterable[str]) -> dict[str, Any]:
    """Return the state of the files directly in some folders of a root, "" for the root. Missing folders count as
    empty."""
    found = {}
    for folder in folders:
        with contextlib.suppress(NotFound):
            for info in (root / folder if folder else root).infos(recursive=False):
                if info.type == pafs.FileType.File:
                    found[f"{folder}/{info.base_name}"] = info.size or 0, info.mtime_ns or 0
    return _state(found)


def holds_dataset(place: Location) -> bool:
    """Return whether a location contains a packed or cleaned dataset."""
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
    """Walks a folder tree on this machine's disk: folders and files first, then the targets of links."""

    def __init__(self, root: Location, start: str, without: str | None) -> None:
        self.root, self.start, self.without = root, start, without
        self.found: dict[str, tuple[int, int]] = {}
        self.seen: set[str] = set()
        """Real paths of the listed files."""
        self.walked: set[str] = set()
        """Real paths of the visited folders."""
        self.links: list[tuple[str, str]] = []
        """Links to follow: the path relative to the root, and the real path of the link's folder."""
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
            self._note(self.circles, "links to a folder that contains them were not followed"),
            self._note(self.repeated, "links to files or folders that are already listed were skipped"),
            self._note(
                self.unnamed,
                "files and folders with names that are not UTF-8 were skipped; rename them to include them",
            ),
        ]
        folders = {path.split("/", 1)[0] for path in self.found if "/" in path}
        folders |= {entry.name for entry in os.scandir(self.start) if self._is_folder(entry)}
        return Files(
            paths=sorted(self.found), folders=folders, notes=[note for note in notes if note], state=_state(self.found)
        )

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder directly below the root counts, even without files."""
        named = not entry.name.startswith(".") and _is_text(entry.name)
        return named and entry.is_dir() and not entry.is_symlink() and os.path.realpath(entry.path) != self.without

    def _note(self, paths: list[str], what: str) -> str:
        if not paths:
            return ""
        first = self.root / paths[0].encode(errors="surrogateescape").decode(errors="replace")
        return f"{len(paths):,} {what}: {first}" + (" and others" if len(paths) > 1 else "")

    def _go(self, real: str, prefix: str) -> None:
        """List a folder tree. real: its real path. prefix: its path relative to the root, ending with /."""
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
        """List the target of a link. folder: the real path of the link's folder."""
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
        else:  # a broken link, which fails with its name when it is read
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
