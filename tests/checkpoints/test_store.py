"""Tests the checkpoint store: complete checkpoints only, fallback to the previous one, and write errors."""

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
        backbone="reference_mlp",
        classes=["a", "b"],
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        dataset="/nowhere",
        epoch=epoch,
        metrics=metrics or {},
    )
    recipe = Recipe(model=ModelConfig(backbone="reference_mlp"))
    state = {"value": value, "nested": {"list": [torch.ones(2), 3]}}
    return Snapshot(name=name, weights={"w": torch.full((size,), value)}, state=state, meta=meta, recipe=recipe)


def store(folder: Path, messages: list[str] | None = None, keep: int = 2) -> CheckpointStore:
    tell = messages.append if messages is not None else print
    return CheckpointStore(locate(folder), "val_top1", "max", CheckpointConfig(keep=keep), tell)


def store_with_three(folder: Path, messages: list[str] | None = None) -> CheckpointStore:
    """Return a store with three checkpoints, of which epoch 1 is the best."""
    found = store(folder, messages)
    for epoch, value in enumerate((0.9, 0.5, 0.6), 1):
        found.save(snapshot(f"epoch-{epoch:04d}", epoch), {"val_top1": value})
    found.flush()
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_recently_finished_epochs_are_reported_again(tmp_path, monkeypatch):
    """A driver that dies loses the reports of its last second, which can cover several short epochs."""
    found = store(tmp_path)
    rows = [{"epoch": epoch, "val_top1": 1 - epoch / 10} for epoch in range(1, 7)]
    for row, now in zip(rows, (1000.0, 1080.0, 1080.5, 1081.0, 1081.5, 1082.0), strict=True):
        monkeypatch.setattr("landmark.checkpoints.store.time.time", lambda now=now: now)
        epoch = int(row["epoch"])
        found.save(snapshot(f"epoch-{epoch:04d}", epoch=epoch, metrics=row), row)
        found.flush()
    assert store(tmp_path).last_reports() == rows[1:]
    again = store(tmp_path)
    again.discard("epoch-0006", "damaged")  # this epoch will be trained again
    assert again.last_reports() == rows[1:5]


def test_the_newest_and_the_best_are_kept(tmp_path):
    found = store_with_three(tmp_path)
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
@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing"])
def test_a_corrupt_newest_checkpoint_falls_back_to_the_previous(tmp_path, file, fault):
    store_with_three(tmp_path)
    path = tmp_path / "checkpoints" / "epoch-0003" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if fault == "truncated" else data)
    if fault == "missing":
        path.unlink()
    messages: list[str] = []
    again = store(tmp_path, messages)
    (tmp_path / "last").mkdir()
    assert again.fetch_last(tmp_path / "last")
    assert read_state(tmp_path / "last")["value"] == 2.0
    assert (
        len(messages) == 1
        and "epoch-0003: corrupt checkpoint: " in messages[0]
        and "resuming from the previous one" in messages[0]
    )
    # The corrupt checkpoint is deleted when the next one is stored.
    again.save(snapshot("epoch-0004"))
    again.close()
    assert "epoch-0003" not in names(tmp_path)


def test_a_corrupt_index_is_rebuilt_from_the_folders(tmp_path):
    store_with_three(tmp_path)
    (tmp_path / "checkpoints" / "index.json").write_text('{"kept": ["epo')
    messages: list[str] = []
    again = store(tmp_path, messages)
    (tmp_path / "last").mkdir()
    assert again.fetch_last(tmp_path / "last") and read_state(tmp_path / "last")["value"] == 3.0
    assert "index.json: corrupt" in messages[0]


def test_a_superseded_process_does_not_overwrite_the_resumed_run(tmp_path):
    messages: list[str] = []
    first = store(tmp_path, messages)
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
    assert "checkpoint epoch-0002 was not stored: another process has resumed" in messages[0]
    assert (tmp_path / "checkpoints" / "index.json").read_text() == index
    assert store(tmp_path).fetch_last(tmp_path / "last") and read_state(tmp_path / "last")["value"] == 2.0
    second.save(snapshot("epoch-0003", 4.0), {"val_top1": 0.7})
    second.close()
    assert names(tmp_path) == ["epoch-0001", "epoch-0002", "epoch-0003", "index.json"]


def test_only_corrupt_checkpoints_are_an_error_and_none_a_new_start(tmp_path):
    assert not store(tmp_path / "empty").fetch_last(tmp_path)
    store_with_three(tmp_path)
    for path in (tmp_path / "checkpoints").glob("*/state.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint is complete; delete the run's folder") as error:
        store(tmp_path).fetch_last(tmp_path)
    assert "\n" not in str(error.value)


def test_code_in_a_state_file_is_not_executed(tmp_path):
    class Malicious:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {tmp_path}/ran",))

    torch.save({"value": Malicious()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        read_state(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "landmark-test", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_keeps_earlier_checkpoints(small_disk):
    messages: list[str] = []
    found = store(small_disk, messages, keep=1)
    floats_per_mb = 250_000
    found.save(snapshot("epoch-0001", 1.0, floats_per_mb), {"val_top1": 0.5})
    found.save(snapshot("epoch-0002", 2.0, 3 * floats_per_mb), {"val_top1": 0.6})
    found.flush()
    assert (
        len(messages) == 1
        and "checkpoint epoch-0002 was not stored: " in messages[0]
        and "No space left" in messages[0]
    )
    assert names(small_disk) == ["epoch-0001", "index.json"]
    with pytest.raises(UserError, match="could not store .*free space .* resume from epoch-0001"):
        found.close()
    # With free space again, the next checkpoint is stored.
    found.save(snapshot("epoch-0003", 3.0, floats_per_mb), {"val_top1": 0.7})
    found.close()
    assert json.loads((small_disk / "checkpoints" / "index.json").read_text())["best"] == "epoch-0003"
