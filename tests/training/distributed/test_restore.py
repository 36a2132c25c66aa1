"""Restoring by several ranks: one checkpoint for all, downloaded once per node, nothing left behind."""

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
from tests.checkpoints.test_store import filled, small_disk, snapshot, store
from tests.support.ranks import Rank, World

__all__ = ["small_disk"]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is downloaded, where to."""
    download, seen = Location.download, []

    def counted(self: Location, target: Path) -> None:
        seen.append(target)
        download(self, target)

    monkeypatch.setattr(Location, "download", counted)
    return seen


def restore_all(world: World, run: Path, node_files: Path, told: list[str] | None = None) -> list[tuple[float, list]]:
    """The value in the checkpoint that each rank found, and the reports that it was given."""
    node_files.mkdir(exist_ok=True)

    def restore(member: Rank) -> tuple[float, list]:
        with restored(store(run, told if member.rank == 0 else []), member, str(node_files)) as (folder, metrics):
            assert folder is not None
            return read_state(folder)["value"], metrics

    found = world.run(restore)
    assert list(node_files.iterdir()) == []
    return found


def test_each_node_downloads_a_checkpoint_once(tmp_path, downloads):
    filled(tmp_path)
    found = restore_all(World(6, per_node=3), tmp_path, tmp_path / "tmp")
    assert found == [(3.0, [])] * 6
    folders = {target.parent for target in downloads}
    assert len(folders) == 2 and len(downloads) == 2 * len((*FILES, CHECKSUMS))


def test_the_newest_is_damaged_for_all_or_for_none(tmp_path):
    filled(tmp_path)
    (tmp_path / "checkpoints" / "epoch-0003" / "state.pt").write_bytes(b"no state")
    told: list[str] = []
    assert restore_all(World(4, per_node=2), tmp_path, tmp_path / "tmp", told) == [(2.0, [])] * 4
    assert (
        len(told) == 1
        and "epoch-0003: corrupt checkpoint: state.pt is missing or does not match its checksum" in told[0]
    )


def test_a_download_that_is_damaged_on_one_node_is_damaged_on_all(tmp_path, monkeypatch):
    filled(tmp_path)
    download = Location.download

    def flipped(self: Location, target: Path) -> None:
        download(self, target)
        if target.parent.name.endswith("-1") and "epoch-0003/state.pt" in self.uri:
            target.write_bytes(target.read_bytes()[:-1])

    monkeypatch.setattr(Location, "download", flipped)
    told: list[str] = []
    assert restore_all(World(2), tmp_path, tmp_path / "tmp", told) == [(2.0, [])] * 2
    assert len(told) == 1


def test_rank_0_chooses_whatever_others_see(tmp_path):
    """A rank that looked before the newest checkpoint was stored, or has an index that storage kept for it."""
    saving = filled(tmp_path)
    stores = [store(tmp_path) for _ in range(3)]
    saving.save(snapshot("epoch-0004", 4.0), {"val_top1": 0.1})
    saving.close()
    stores[0] = store(tmp_path)

    def restore(member: Rank) -> float:
        with restored(stores[member.rank], member, str(tmp_path)) as (folder, _):
            assert folder is not None
            return read_state(folder)["value"]

    assert World(3).run(restore) == [4.0] * 3


def test_metrics_are_those_that_rank_0_reads(tmp_path):
    filled(tmp_path)
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


def test_containers_that_share_no_folder_download_each_for_themselves(tmp_path, downloads):
    filled(tmp_path)

    def restore(member: Rank) -> float:
        own = tmp_path / f"container-{member.rank}"
        own.mkdir()
        with restored(store(tmp_path), member, str(own)) as (folder, _):
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
    """Start code in a process of its own: a fork of this one would inherit locks that its threads hold."""
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def test_what_a_killed_process_left_is_deleted_and_what_is_in_use_is_not(tmp_path):
    filled(tmp_path)
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


def test_a_full_disk_of_one_node_is_one_line_on_all(tmp_path, small_disk):
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


def test_a_failure_of_storage_that_may_pass_stays_one_on_all_ranks(tmp_path, monkeypatch):
    filled(tmp_path)

    def unreachable(self: Location, target: Path) -> None:
        raise TransientStorageError(f"{self}: no answer")

    monkeypatch.setattr(Location, "download", unreachable)

    def restore(member: Rank) -> str:
        with pytest.raises(TransientStorageError) as error, restored(store(tmp_path), member, str(tmp_path)):
            pass
        return str(error.value)

    assert len(set(World(4, per_node=2).run(restore))) == 1


def test_state_is_read_from_the_file_when_it_is_used(tmp_path):
    """A rank that takes a part of a large tensor reads that part."""
    torch.save({"large": torch.arange(1 << 24, dtype=torch.float32)}, tmp_path / "state.pt")
    grown, _ = process(READ, tmp_path).communicate(timeout=200)
    assert int(grown) < 32 << 20  # of 64 MiB
