"""Restores a run of several workers: rank 0 selects the checkpoint, and each node downloads and verifies it once.

The ranks of a node map the same local files into memory and read the parts that they need.
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

from landmark.checkpoints.format import CHECKSUMS, DamagedCheckpoint
from landmark.checkpoints.store import CheckpointStore
from landmark.config import UserError
from landmark.storage import TransientStorageError

PREFIX = "landmark-restore-"
"""Name prefix of a node's temporary folder with a checkpoint."""


class Member(Protocol):
    """Properties of a run's rank that are required for restoring."""

    rank: int
    world_size: int
    local_rank: int
    """Index of this rank among those of its node."""
    node_rank: int
    """Index of its node among those of the run."""
    device: torch.device

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks."""
        ...


@contextlib.contextmanager
def restored(
    store: CheckpointStore, member: Member, folder: str | None = None
) -> Iterator[tuple[Path | None, list[dict[str, float]]]]:
    """Yield the local folder of the newest complete checkpoint, the same one on all ranks, and its `last_reports`.

    The first rank of each node downloads the checkpoint into `folder` (default: the machine's temporary folder) and
    verifies it. The folder is deleted after all ranks have left this context. If a checkpoint is corrupt on any node,
    all nodes use the previous one. This process becomes the one that saves. Call it on every rank. Raises the error of
    one rank on all ranks.
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
            # This rank runs in another container than the node's first rank.
            place, fetches = place.with_name(f"{place.name}-{member.rank}"), True
            made = _failure(lambda: owned.enter_context(_node_folder(place)))
        else:
            made = None
        for name in opening["names"]:
            failure = made or (_failure(lambda name=name: store.fetch(name, place)) if fetches else None)  # type: ignore[misc]
            received = _broadcast_result(member, failure)
            if received is None:
                break
            if not received["damaged"]:
                raise _error(received)
            if member.rank == 0:
                store.discard(name, received["text"])
        else:
            raise store.none_complete()
        sums = (place / CHECKSUMS).read_text()
        found = _from_rank_0(member, lambda: {"sums": sums, "reports": store.last_reports()})
        _agreed(member, lambda: _check_same(store, name, sums, found["sums"]))
        yield place, found["reports"]
        _broadcast_result(member, None)  # a barrier: all ranks have read what they need


def _opening(store: CheckpointStore) -> dict[str, Any]:
    store.claim()
    return {"names": store.candidates(), "token": secrets.token_hex(8)}


def _check_same(store: CheckpointStore, name: str, local: str, rank_0: str) -> None:
    if local != rank_0:
        raise UserError(
            f"{store.root / name}: nodes read different files under this name; check that all nodes see the same storage"
        )


@contextlib.contextmanager
def _node_folder(place: Path) -> Iterator[None]:
    """Create a folder and delete it at the end. Also deletes folders of processes that were killed.

    A process that holds the lock next to its folder is alive. Raises OSError.
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
    """Return an action's error as plain values, or None."""
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
    """Run an action on every rank. If it fails on one, raise its error on all."""
    if (received := _broadcast_result(member, _failure(action))) is not None:
        raise _error(received)


def _from_rank_0(member: Member, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return rank 0's result, plain values, on all ranks. Raises rank 0's error on all ranks."""
    made: dict[str, Any] = {}
    _agreed(member, lambda: made.update(make()) if member.rank == 0 else None)
    found = _broadcast_result(member, made if member.rank == 0 else None)
    assert found is not None
    return found


def _broadcast_result(member: Member, message: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the message of the first rank that has one on all ranks, or None if no rank has one."""
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
