"""Restoring a run of several workers: rank 0 chooses the checkpoint, and each node downloads and checks it once.

The ranks of a node map the same local files into memory and read from them what they need.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from landmark.config import UserError
from landmark.storage import TransientStorageError
from landmark.training.checkpoints import CHECKSUMS, DamagedCheckpoint
from landmark.training.store import CheckpointStore

PREFIX = "landmark-restore-"
"""Begins the name of a node's folder with a checkpoint, in the folder for temporary files."""


class Member(Protocol):
    """A rank of a run, as far as restoring needs it."""

    rank: int
    world_size: int
    local_rank: int
    """Number of this rank among those of its node."""
    node_rank: int
    """Number of its node among those of the run."""
    device: torch.device

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        ...


@contextlib.contextmanager
def restored(
    store: CheckpointStore, member: Member, folder: str | None = None
) -> Iterator[tuple[Path | None, list[dict[str, float]]]]:
    """Give the newest complete checkpoint's local folder, the same checkpoint on all ranks, and its `last_reports`.

    The first rank of each node downloads it into `folder` (of the machine's temporary files by default) and checks it; the
    folder is deleted when all ranks have left this context. A corrupt checkpoint on any node is one on all: the one before
    is taken. Becomes the process that saves. Called on every rank alike. Raises on all ranks what one of them met.
    """
    opening = _from_rank_0(member, lambda: _opening(store))
    place = Path(folder or tempfile.gettempdir()) / f"{PREFIX}{opening['token']}-{member.node_rank}"
    if not opening["names"]:
        yield None, []
        return
    with contextlib.ExitStack() as owned:
        fetches = member.local_rank == 0
        _agreed(member, lambda: owned.enter_context(_node_folder(place)) if fetches else None)
        if not fetches and not place.is_dir():
            # Another container than the node's first rank.
            place, fetches = place.with_name(f"{place.name}-{member.rank}"), True
            made = _failure(lambda: owned.enter_context(_node_folder(place)))
        else:
            made = None
        for name in opening["names"]:
            failure = made or (_failure(lambda name=name: store.fetch(name, place)) if fetches else None)  # type: ignore[misc]
            heard = _heard(member, failure)
            if heard is None:
                break
            if not heard["damaged"]:
                raise _error(heard)
            if member.rank == 0:
                store.discard(name, heard["text"])
        else:
            raise store.none_complete()
        sums = (place / CHECKSUMS).read_text()
        found = _from_rank_0(member, lambda: {"sums": sums, "reports": store.last_reports()})
        _agreed(member, lambda: _check_same(store, name, sums, found["sums"]))
        yield place, found["reports"]
        _heard(member, None)  # all ranks have read what they need


def _opening(store: CheckpointStore) -> dict[str, Any]:
    store.claim()
    return {"names": store.candidates(), "token": secrets.token_hex(8)}


def _check_same(store: CheckpointStore, name: str, mine: str, rank_0: str) -> None:
    if mine != rank_0:
        raise UserError(
            f"{store.root / name}: nodes read different files under this name; check that all nodes see the same storage"
        )


@contextlib.contextmanager
def _node_folder(place: Path) -> Iterator[None]:
    """Make a folder that is deleted at the end; of processes that were killed the next call of this deletes it.

    Who holds the lock beside the folder lives. Raises OSError.
    """
    for lock in place.parent.glob(f"{PREFIX}*.lock"):
        with contextlib.suppress(OSError), lock.open("r") as held:
            _lock(held, wait=False)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
    lock = place.with_name(f"{place.name}.lock")
    with lock.open("x") as held:
        try:
            _lock(held, wait=True)
            place.mkdir(mode=0o700)
            yield
        finally:
            shutil.rmtree(place, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _lock(file: IO[str], *, wait: bool) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _failure(action: Callable[[], object]) -> dict[str, Any] | None:
    """Return what went wrong in an action, as plain values; None where nothing did."""
    try:
        action()
    except UserError as error:
        return {
            "text": str(error),
            "damaged": isinstance(error, DamagedCheckpoint),
            "transient": isinstance(error, TransientStorageError),
        }
    except OSError as error:
        where = error.filename or tempfile.gettempdir()
        text = f"{where}: {os.strerror(error.errno or 0)}; free space there, or set TMPDIR to a folder on another disk"
        return {"text": text, "damaged": False, "transient": False}
    return None


def _error(failure: dict[str, Any]) -> UserError:
    return (TransientStorageError if failure["transient"] else UserError)(failure["text"])


def _agreed(member: Member, action: Callable[[], object]) -> None:
    """Do something on every rank; where it fails on one, raise that failure on all."""
    if (heard := _heard(member, _failure(action))) is not None:
        raise _error(heard)


def _from_rank_0(member: Member, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return on all ranks what rank 0 makes, plain values; raises its failure on all."""
    made: dict[str, Any] = {}
    _agreed(member, lambda: made.update(make()) if member.rank == 0 else None)
    found = _heard(member, made if member.rank == 0 else None)
    assert found is not None
    return found


def _heard(member: Member, message: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return on all ranks the message of the first rank that has one; None where none has."""
    data = b"" if message is None else json.dumps(message).encode()
    lengths = torch.zeros(member.world_size, dtype=torch.int64, device=member.device)
    lengths[member.rank] = len(data)
    found = member.all_reduce(lengths).tolist()
    speaker = next((rank for rank, length in enumerate(found) if length), None)
    if speaker is None:
        return None
    text = torch.zeros(found[speaker], dtype=torch.uint8, device=member.device)
    if member.rank == speaker:
        text.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return json.loads(member.all_reduce(text).cpu().numpy().tobytes())
