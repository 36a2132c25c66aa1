"""Tests restoring on several ranks: the same checkpoint, one download per node, no leftover files."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from landmark.checkpoints.format import CHECKSUMS, FILES, read_state
from landmark.config import UserError
from landmark.storage import Location, TransientStorageError
from landmark.training.distributed.restore import PREFIX, restored
from tests.checkpoints.test_store import small_disk, snapshot, store, store_with_three
from tests.support.ranks import Rank, World

__all__ = ["small_disk"]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the target path of every download."""
    download, seen = Location.download, []

    def counted(self: Location, target: Path) -> None:
        seen.append(target)
        download(self, target)

    monkeypatch.setattr(Location, "download", counted)
    return seen


def restore_all(
    world: World, run: Path, node_files: Path, messages: list[str] | None = None
) -> list[tuple[float, list]]:
    """Return the value in the checkpoint that each rank restored, and the metrics that it received."""
    node_files.mkdir(exist_ok=True)

    def restore(member: Rank) -> tuple[float, list]:
        with restored(store(run, messages if member.rank == 0 else []), member, str(node_files)) as (folder, metrics):
            assert folder is not None
            return read_state(folder)["value"], metrics

    found = world.run(restore)
    assert list(node_files.iterdir()) == []
    return found


def test_each_node_downloads_a_checkpoint_once(tmp_path, downloads):
    store_with_three(tmp_path)
    found = restore_all(World(6, per_node=3), tmp_path, tmp_path / "tmp")
    assert found == [(3.0, [])] * 6
    folders = {target.parent for target in downloads}
    assert len(folders) == 2 and len(downloads) == 2 * len((*FILES, CHECKSUMS))


def test_a_corrupt_newest_checkpoint_is_skipped_by_all_ranks(tmp_path):
    store_with_three(tmp_path)
    (tmp_path / "checkpoints" / "epoch-0003" / "state.pt").write_bytes(b"no state")
    messages: list[str] = []
    assert restore_all(World(4, per_node=2), tmp_path, tmp_path / "tmp", messages) == [(2.0, [])] * 4
    assert (
        len(messages) == 1
        and "epoch-0003: corrupt checkpoint: state.pt is missing or does not match its checksum" in messages[0]
    )


def test_a_download_corrupt_on_one_node_is_skipped_by_all_ranks(tmp_path, monkeypatch):
    store_with_three(tmp_path)
    download = Location.download

    def flipped(self: Location, target: Path) -> None:
        download(self, target)
        if target.parent.name.endswith("-1") and "epoch-0003/state.pt" in self.uri:
            target.write_bytes(target.read_bytes()[:-1])

    monkeypatch.setattr(Location, "download", flipped)
    messages: list[str] = []
    assert restore_all(World(2), tmp_path, tmp_path / "tmp", messages) == [(2.0, [])] * 2
    assert len(messages) == 1


def test_rank_0_chooses_the_checkpoint_for_all_ranks(tmp_path):
    """Other ranks may have read the index before the newest checkpoint was stored."""
    newest_store = store_with_three(tmp_path)
    stores = [store(tmp_path) for _ in range(3)]
    newest_store.save(snapshot("epoch-0004", 4.0), {"val_top1": 0.1})
    newest_store.close()
    stores[0] = store(tmp_path)

    def restore(member: Rank) -> float:
        with restored(stores[member.rank], member, str(tmp_path)) as (folder, _):
            assert folder is not None
            return read_state(folder)["value"]

    assert World(3).run(restore) == [4.0] * 3


def test_metrics_come_from_rank_0(tmp_path):
    store_with_three(tmp_path)
    meta = tmp_path / "checkpoints" / "epoch-0003" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"metrics": {"val_top1": 0.6}}))
    sums = meta.with_name(CHECKSUMS)
    digest = subprocess.run(["sha256sum", meta], capture_output=True, text=True, check=True).stdout.split()[0]
    sums.write_text(json.dumps(json.loads(sums.read_text()) | {"meta.json": digest}))
    assert restore_all(World(2), tmp_path, tmp_path / "tmp") == [(3.0, [{"val_top1": 0.6}])] * 2


def test_a_fresh_run_has_nothing_to_restore(tmp_path):
    def restore(member: Rank) -> Path | None:
        with restored(store(tmp_path / "run"), member, str(tmp_path)) as (folder, metrics):
            assert metrics == []
            return folder

    assert World(2).run(restore) == [None, None]


def test_containers_without_a_shared_folder_each_download(tmp_path, downloads):
    store_with_three(tmp_path)

    def restore(member: Rank) -> float:
        container = tmp_path / f"container-{member.rank}"
        container.mkdir()
        with restored(store(tmp_path), member, str(container)) as (folder, _):
            assert folder is not None
            return read_state(folder)["value"]

    assert World(2, per_node=2).run(restore) == [3.0, 3.0]
    assert len({target.parent for target in downloads}) == 2


HOLD = """
import pathlib, signal, sys
from landmark.training.distributed.restore import _node_folder
with _node_folder(pathlib.Path(sys.argv[1])):
    pathlib.Path(sys.argv[1], "state.pt").touch()
    signal.pause()
"""
READ = """
import pathlib, sys
import psutil
from landmark.checkpoints.format import read_state
before = psutil.Process().memory_info().rss
part = read_state(pathlib.Path(sys.argv[1]))["large"][1 << 20 : 1 << 21].clone()
assert part[0] == 1 << 20
print(psutil.Process().memory_info().rss - before)
"""


def process(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start code in a new process. A fork would inherit locks that threads of this process hold."""
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def test_files_of_killed_processes_are_deleted_and_used_files_kept(tmp_path):
    store_with_three(tmp_path)
    node_files = tmp_path / "tmp"
    node_files.mkdir()
    states = {name: node_files / f"{PREFIX}{name}" / "state.pt" for name in ("killed", "alive")}
    holders = {name: process(HOLD, path.parent) for name, path in states.items()}
    try:
        while not all(path.exists() for path in states.values()):
            assert all(holder.poll() is None for holder in holders.values())
            time.sleep(0.01)
        holders["killed"].kill()
        holders["killed"].wait()
        assert states["killed"].exists()
        with restored(store(tmp_path), World(1).members[0], str(node_files)) as (folder, _):
            assert folder is not None and len(list(node_files.iterdir())) == 4
        assert sorted(path.name for path in node_files.iterdir()) == [f"{PREFIX}alive", f"{PREFIX}alive.lock"]
        assert states["alive"].exists()
    finally:
        for holder in holders.values():
            holder.kill()
            holder.communicate()


def test_a_full_disk_on_one_node_is_the_same_error_on_all_ranks(tmp_path, small_disk):
    saving = store(tmp_path)
    saving.save(snapshot("epoch-0001", 1.0, 1_500_000), {"val_top1": 0.5})
    saving.close()

    def restore(member: Rank) -> str:
        with (
            pytest.raises(
                UserError, match="no space left for checkpoint epoch-0001; free space there, or set TMPDIR"
            ) as error,
            restored(store(tmp_path), member, str(small_disk if member.rank == 1 else tmp_path)),
        ):
            pass
        return str(error.value)

    lines = World(3).run(restore)
    assert len(set(lines)) == 1 and "\n" not in lines[0] and str(small_disk) in lines[0]
    assert list(small_disk.iterdir()) == []
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_a_transient_storage_error_stays_transient_on_all_ranks(tmp_path, monkeypatch):
    store_with_three(tmp_path)

    def unreachable(self: Location, target: Path) -> None:
        raise TransientStorageError(f"{self}: no answer")

    monkeypatch.setattr(Location, "download", unreachable)

    def restore(member: Rank) -> str:
        with pytest.raises(TransientStorageError) as error, restored(store(tmp_path), member, str(tmp_path)):
            pass
        return str(error.value)

    assert len(set(World(4, per_node=2).run(restore))) == 1


def test_state_is_read_lazily_from_the_file(tmp_path):
    """A rank that needs a slice of a large tensor reads only the slice."""
    torch.save({"large": torch.arange(1 << 24, dtype=torch.float32)}, tmp_path / "state.pt")
    growth, _ = process(READ, tmp_path).communicate(timeout=200)
    assert int(growth) < 32 << 20  # of 64 MiB
