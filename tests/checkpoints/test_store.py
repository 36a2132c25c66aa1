"""The store: whole checkpoints only, the one before where the newest is damaged, room for errors."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from landmark.checkpoints.format import CheckpointMeta, Snapshot, read_state, resolve_checkpoint
from landmark.checkpoints.store import CheckpointStore
from landmark.config import CheckpointConfig, ModelConfig, Recipe, UserError
from landmark.storage import locate


def snapshot(name: str, value: float = 0.0, size: int = 4, epoch: int = 1, metrics: dict | None = None) -> Snapshot:
    meta = CheckpointMeta(
        backbone="deck_mlp",
        classes=["a", "b"],
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        dataset="/nowhere",
        epoch=epoch,
        metrics=metrics or {},
    )
    recipe = Recipe(model=ModelConfig(backbone="deck_mlp"))
    state = {"value": value, "nested": {"list": [torch.ones(2), 3]}}
    return Snapshot(name=name, weights={"w": torch.full((size,), value)}, state=state, meta=meta, recipe=recipe)


def store(folder: Path, told: list[str] | None = None, keep: int = 2) -> CheckpointStore:
    tell = told.append if told is not None else print
    return CheckpointStore(locate(folder), "val_top1", "max", CheckpointConfig(keep=keep), tell)


def filled(folder: Path, told: list[str] | None = None) -> CheckpointStore:
    """A store with the best at epoch 1, and two newer ones."""
    found = store(folder, told)
    for epoch, value in enumerate((0.9, 0.5, 0.6), 1):
        found.save(snapshot(f"epoch-{epoch:04d}", epoch), {"val_top1": value})
    found.flush()
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_epochs_that_lately_ended_are_reported_once_more(tmp_path, monkeypatch):
    """A driver that dies loses the reports of its last second: of several epochs where they are short."""
    found = store(tmp_path)
    rows = [{"epoch": epoch, "val_top1": 1 - epoch / 10} for epoch in range(1, 7)]
    for row, now in zip(rows, (1000.0, 1080.0, 1080.5, 1081.0, 1081.5, 1082.0), strict=True):
        monkeypatch.setattr("landmark.checkpoints.store.time.time", lambda now=now: now)
        epoch = int(row["epoch"])
        found.save(snapshot(f"epoch-{epoch:04d}", epoch=epoch, metrics=row), row)
        found.flush()
    assert store(tmp_path).last_reports() == rows[1:]
    again = store(tmp_path)
    again.discard("epoch-0006", "damaged")  # its epoch is trained again
    assert again.last_reports() == rows[1:5]


def test_the_newest_and_the_best_are_kept(tmp_path):
    found = filled(tmp_path)
    assert names(tmp_path) == ["epoch-0001", "epoch-0002", "epoch-0003", "index.json"]
    found.save(snapshot("epoch-0004-image-000000010", 4.0))
    found.close()
    assert names(tmp_path) == ["epoch-0001", "epoch-0003", "epoch-0004-image-000000010", "index.json"]
    assert found.path("best") == "checkpoints/epoch-0001"
    again = store(tmp_path)
    (tmp_path / "last").mkdir()
    assert again.fetch_last(tmp_path / "last")
    assert read_state(tmp_path / "last")["value"] == 4.0
    assert resolve_checkpoint(str(tmp_path)).uri.endswith("checkpoints/epoch-0001")


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "checksums.json", "meta.json"])
@pytest.mark.parametrize("fault", ["flipped", "cut", "missing"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, file, fault):
    filled(tmp_path)
    path = tmp_path / "checkpoints" / "epoch-0003" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if fault == "cut" else data)
    if fault == "missing":
        path.unlink()
    told: list[str] = []
    again = store(tmp_path, told)
    (tmp_path / "last").mkdir()
    assert again.fetch_last(tmp_path / "last")
    assert read_state(tmp_path / "last")["value"] == 2.0
    assert (
        len(told) == 1 and "epoch-0003: corrupt checkpoint: " in told[0] and "resuming from the previous one" in told[0]
    )
    # What was damaged goes with the next one that is stored.
    again.save(snapshot("epoch-0004"))
    again.close()
    assert "epoch-0003" not in names(tmp_path)


def test_a_damaged_index_is_made_anew_from_the_folders(tmp_path):
    filled(tmp_path)
    (tmp_path / "checkpoints" / "index.json").write_text('{"kept": ["epo')
    told: list[str] = []
    again = store(tmp_path, told)
    (tmp_path / "last").mkdir()
    assert again.fetch_last(tmp_path / "last") and read_state(tmp_path / "last")["value"] == 3.0
    assert "index.json: corrupt" in told[0]


def test_a_process_that_was_cut_off_overwrites_nothing_of_the_one_that_goes_on(tmp_path):
    told: list[str] = []
    first = store(tmp_path, told)
    first.claim()
    first.save(snapshot("epoch-0001", 1.0), {"val_top1": 0.9})
    first.flush()
    second = store(tmp_path)
    second.claim()
    (tmp_path / "last").mkdir()
    assert second.fetch_last(tmp_path / "last")
    second.save(snapshot("epoch-0002", 2.0), {"val_top1": 0.8})
    second.flush()
    index = (tmp_path / "checkpoints" / "index.json").read_text()
    first.save(snapshot("epoch-0002", 3.0), {"val_top1": 0.95})
    with pytest.raises(UserError, match="another process has resumed this run"):
        first.close()
    assert "checkpoint epoch-0002 was not stored: another process has resumed" in told[0]
    assert (tmp_path / "checkpoints" / "index.json").read_text() == index
    assert store(tmp_path).fetch_last(tmp_path / "last") and read_state(tmp_path / "last")["value"] == 2.0
    second.save(snapshot("epoch-0003", 4.0), {"val_top1": 0.7})
    second.close()
    assert names(tmp_path) == ["epoch-0001", "epoch-0002", "epoch-0003", "index.json"]


def test_nothing_whole_is_one_line_and_nothing_at_all_a_fresh_start(tmp_path):
    assert not store(tmp_path / "empty").fetch_last(tmp_path)
    filled(tmp_path)
    for path in (tmp_path / "checkpoints").glob("*/state.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint is complete; delete the run's folder") as error:
        store(tmp_path).fetch_last(tmp_path)
    assert "\n" not in str(error.value)


def test_a_state_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {tmp_path}/ran",))

    torch.save({"value": Evil()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        read_state(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "landmark-test", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoints_before_and_is_told(small_disk):
    told: list[str] = []
    found = store(small_disk, told, keep=1)
    million = 250_000
    found.save(snapshot("epoch-0001", 1.0, million), {"val_top1": 0.5})
    found.save(snapshot("epoch-0002", 2.0, 3 * million), {"val_top1": 0.6})
    found.flush()
    assert len(told) == 1 and "checkpoint epoch-0002 was not stored: " in told[0] and "No space left" in told[0]
    assert names(small_disk) == ["epoch-0001", "index.json"]
    with pytest.raises(UserError, match="could not store .*free space .* resume from epoch-0001"):
        found.close()
    # Room again: the next one is stored, and nothing is wrong any more.
    found.save(snapshot("epoch-0003", 3.0, million), {"val_top1": 0.7})
    found.close()
    assert json.loads((small_disk / "checkpoints" / "index.json").read_text())["best"] == "epoch-0003"
