"""A bounded folder of Arrow tables on a node's disk that all processes share, with LRU eviction."""

import contextlib
import errno
import fcntl
import functools
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from landmark.config import UserError

FOLDER = "landmark-cache-1"
"""Folder of the entries below the folder that the user names. The number is the version of their format."""
SUFFIX = ".arrow"
WRITING = ".tmp"
"""Suffix of an entry that is being loaded. Its process holds a lock on the file, which ends with the process."""
KEPT = 0.95
"""Fraction of the limit that a removal keeps. A removal lists all entries, so that it has to be rare."""
TOUCH_S = 60.0
"""Minimum time between two updates of an entry's time of use."""
LOCK_S = 10.0
"""Maximum time to wait for the lock on the total size. A suspended process may hold it."""
WAIT_S = 60.0
"""Maximum time to wait for another process that loads the same entry."""
POLL_S = 0.01
PAUSE_S = 60.0
"""Seconds without new entries after the disk failed, for example because it is full."""
MISUSE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS)
"""Errors of creating the folder that only the user can fix."""
TRAILER = struct.Struct("<8sQQ")
"""End of an entry: a magic number, the size of the Arrow file, and the sum of all 64-bit words before the trailer."""
MAGIC = b"LMCACHE1"
WORD = 8
"""Bytes of a word of the checksum."""


class DiskCache:
    """Tables by key, in files of at most `max_bytes` bytes together. Safe for the threads and processes of a node.

    An entry is an uncompressed Arrow file that is memory-mapped. A returned table stays valid after its entry was
    removed. Entries appear by renaming, so that a killed process leaves no incomplete one. A corrupt entry counts as
    missing. If the disk fails, one warning is printed, and tables are loaded without storing them.

    The limit includes entries that are being written. If processes have different limits, each enforces its own limit
    when it adds an entry.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        """Create the folder. Raises UserError if it cannot be written to."""
        self.name = folder
        self.folder = Path(folder) / FOLDER
        self.max_bytes = max_bytes
        self._paused_until = 0.0
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if error.errno in MISUSE:
                raise UserError(
                    f"{folder}: cannot be used as the cache ({error.strerror}); give a writable folder on a local disk"
                ) from None
            self._failed(error)

    def get(self, key: str) -> pa.Table | None:
        """Return a table without copying it. None if there is no intact entry."""
        path = self._path(key)
        try:
            used = path.stat().st_mtime
            table = _mapped(path)
        except (OSError, pa.ArrowException, struct.error) as error:
            if getattr(error, "errno", None) is None:  # corrupt, not missing or a failure of the system
                with contextlib.suppress(OSError):
                    path.unlink()
            return None
        if time.time() - used > TOUCH_S:
            with contextlib.suppress(OSError):  # the entry was just removed, or another user owns it
                os.utime(path)
        return table

    def fetch(
        self, key: str, load: Callable[[], pa.Table], storable: Callable[[pa.Table], bool] = lambda table: True
    ) -> pa.Table:
        """Return an entry. If it is missing, `load` the table, and store it if it is `storable`.

        If several threads or processes need a missing entry, one of them loads it. The others wait, up to WAIT_S.
        """
        ends = time.monotonic() + WAIT_S
        while (found := self.get(key)) is None:
            claim = self._claim(key)
            if claim is None:
                if self._paused() or time.monotonic() > ends:
                    return load()
                time.sleep(POLL_S)
                continue
            with claim:
                if (found := self.get(key)) is None and storable(found := load()):
                    self._store(claim, found)
                return found
        return found

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def _paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _failed(self, error: OSError) -> None:
        """Stop storing for a while after a failure of the disk."""
        self._paused_until = time.monotonic() + PAUSE_S
        if not self._warned:
            self._warned = True
            reason = error.strerror or str(error)
            print(
                f"warning: {self.name}: cannot write to the cache ({reason}); reading continues without storing in it",
                file=sys.stderr,
                flush=True,
            )

    def _claim(self, key: str) -> "_Claim | None":
        """Return the exclusive right to load an entry. None if another thread or process has it, or after a failure."""
        if self._paused():
            return None
        path = self._path(key)
        temporary = path.with_suffix(WRITING)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                file = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
                if not _locked(file):
                    os.close(file)
                    return None
                if _is_same(file, temporary):
                    return _Claim(path, temporary, file)
                os.close(file)  # its previous owner renamed or removed it meanwhile
        except OSError as error:
            self._failed(error)
            return None

    def _store(self, claim: "_Claim", table: pa.Table) -> None:
        table = table.combine_chunks()
        counter = pa.MockOutputStream()
        _write(table, counter)
        words = -(-counter.size() // WORD)
        try:
            if self._reserve(claim, words * WORD + TRAILER.size):
                claim.commit(table, counter.size())
        except OSError as error:
            self._failed(error)

    def _reserve(self, claim: "_Claim", size: int) -> bool:
        """Reserve the disk space of a new entry within the limit, and remove old entries for it. Returns whether that
        was possible."""
        with self._ledger() as ledger:
            if ledger is None or size > self.max_bytes:
                return False
            total = _read_total(ledger)
            if total is None or total + size > self.max_bytes:
                total = self._remove_oldest(min(int(self.max_bytes * KEPT), self.max_bytes - size))
            fits = total + size <= self.max_bytes
            # Counted before it uses space: a process that is killed in between leaves a total that is too large, which
            # the next removal corrects.
            _write_total(ledger, total + size if fits else total)
            if fits:
                try:
                    claim.allocate(size)
                except OSError:
                    _write_total(ledger, total)
                    raise
            return fits

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[int | None]:
        """Yield the locked file that contains the total size of all entries. None if the lock is not available."""
        ledger = os.open(self.folder / "total", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            ends = time.monotonic() + LOCK_S
            while not (locked := _locked(ledger)) and time.monotonic() < ends:
                time.sleep(POLL_S)
            yield ledger if locked else None
        finally:
            os.close(ledger)

    def _remove_oldest(self, target: int) -> int:
        """Remove entries in LRU order until `target` bytes are left, and what killed processes left.

        Returns the bytes that are left.
        """
        entries, total = [], 0
        for folder in os.scandir(self.folder):
            if not folder.is_dir():
                continue
            for file in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if file.name.endswith(WRITING) and _remove_abandoned(file.path):
                        continue
                    state = file.stat()
                    total += state.st_size
                    if file.name.endswith(SUFFIX):
                        entries.append((state.st_mtime_ns, state.st_size, file.path))
        for _, size, path in sorted(entries):
            if total <= target:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total


class _Claim:
    """The lock on an entry that this process loads. It ends with `with`, or with the process."""

    def __init__(self, path: Path, temporary: Path, file: int) -> None:
        self.path, self.temporary, self.file = path, temporary, file
        self.committed = False

    def allocate(self, size: int) -> None:
        """Reserve disk space. Raises OSError if the disk is full."""
        try:
            os.posix_fallocate(self.file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(self.file, size)  # counted in the total, although the disk may become full

    def commit(self, table: pa.Table, size: int) -> None:
        """Write the entry, and make it visible. size: bytes of the Arrow file."""
        with open(self.file, "wb", closefd=False) as file:
            _write(table, file)
            file.write(bytes(-size % WORD))
        words = -(-size // WORD)
        with pa.memory_map(str(self.temporary)) as source:  # read back, because a copy in memory takes longer
            total = _sum(source.read_buffer(), words)
        os.pwrite(self.file, TRAILER.pack(MAGIC, size, total), words * WORD)
        os.rename(self.temporary, self.path)
        self.committed = True

    def __enter__(self) -> "_Claim":
        return self

    def __exit__(self, *error: object) -> None:
        if not self.committed:
            with contextlib.suppress(OSError):
                os.unlink(self.temporary)
        os.close(self.file)


@functools.cache
def shared_cache(folder: str, max_bytes: int) -> DiskCache:
    """Return this process's cache in a folder."""
    return DiskCache(folder, max_bytes)


def _write(table: pa.Table, sink: Any) -> None:
    """Write a table as an Arrow file."""
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _mapped(path: Path) -> pa.Table:
    """Return the table of an entry, memory-mapped. Comparing the checksum also reads the file into the page cache.

    Raises OSError, pa.ArrowException or struct.error if the entry is corrupt.
    """
    with pa.memory_map(str(path)) as source:
        buffer = source.read_buffer()
    words = (len(buffer) - TRAILER.size) // WORD
    magic, size, total = TRAILER.unpack_from(buffer, len(buffer) - TRAILER.size)
    if magic != MAGIC or -(-size // WORD) != words or _sum(buffer, words) != total:
        raise pa.ArrowInvalid(f"{path}: corrupt cache entry")
    return pa.ipc.open_file(buffer.slice(0, size)).read_all()


def _sum(data: pa.Buffer, words: int) -> int:
    """Return the sum of the first 64-bit words modulo 2^64. It finds changed bytes and missing blocks at the speed of
    memory: 0.1 ms per MB."""
    return int(np.add.reduce(np.frombuffer(data, dtype="<u8", count=words)))


def _locked(file: int) -> bool:
    """Lock an open file unless it is locked. Returns whether this call locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(file: int, path: Path) -> bool:
    """Return whether an open file is still the file at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _remove_abandoned(path: str) -> bool:
    """Remove an unfinished entry unless a process is still loading it. Returns whether it was removed."""
    try:
        file = os.open(path, os.O_RDWR)
    except PermissionError:  # of another user, whose processes remove it
        return False
    try:
        if not _locked(file):
            return False
        os.unlink(path)
        return True
    finally:
        os.close(file)


def _read_total(ledger: int) -> int | None:
    try:
        return int(os.pread(ledger, 32, 0))
    except ValueError:  # new, or deleted by the user
        return None


def _write_total(ledger: int, total: int) -> None:
    os.pwrite(ledger, f"{total:<31d}\n".encode(), 0)
