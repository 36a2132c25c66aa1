"""Tests planning, progress, checkpoints and restoring at full scale: 64 ranks, 4,132,914 images, 203,094 classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from landmark.data.loading.progress import EpochProgress
from landmark.storage import Location
from landmark.training.distributed.restore import restored
from landmark.training.loop.state import RunState
from tests.support.ranks import Rank, World
from tests.support.scale import (
    CLASSES,
    PER_NODE,
    RANKS,
    SAMPLES,
    full_recipe,
    new_store,
    plan_of,
    visits_of,
    write_metadata,
)

WIDTH = 2


def rows_and_class_ids(state: RunState) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return this rank's rows of weights and optimizer state, each with its expected values: the class numbers."""
    assert state.step.partial_fc is not None
    pairs = []
    for optimizer in state.step.partial_fc.optimizers.values():
        first, rows = optimizer.first, len(optimizer.state["mean"])
        for number, tensor in enumerate([optimizer.weight[first : first + rows], *dict(optimizer.tensors()).values()]):
            ids = torch.arange(first, first + rows, dtype=torch.float32) + number * CLASSES
            pairs.append((tensor, ids.view(-1, *[1] * (tensor.ndim - 1)).expand_as(tensor)))
    return pairs


def test_64_ranks_use_each_image_once_and_restore_once_per_node(tmp_path, monkeypatch):
    dataset = write_metadata(tmp_path / "dataset")
    recipe = full_recipe(WIDTH, subcenters=1)
    download, bytes_read = Location.download, dict.fromkeys(range(RANKS // PER_NODE), 0)

    def counted(self: Location, target: Path) -> None:
        download(self, target)
        bytes_read[int(target.parent.name.rsplit("-", 1)[1])] += target.stat().st_size

    monkeypatch.setattr(Location, "download", counted)
    use_counts = np.zeros(SAMPLES, dtype=np.int64)
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def steps(state: RunState, rank: int, world_size: int, count: int | None) -> None:
        position = state.position
        all_visits = visits_of(plan_of(state.rows, position, rank, world_size))
        for visits in all_visits[position.step :][:count]:
            position.advance(visits)
            use_counts[visits] += 1

    def first_half(member: Rank) -> int:
        state = RunState(recipe, dataset, member)
        for tensor, ids in rows_and_class_ids(state):
            tensor.copy_(ids)
        steps(state, member.rank, RANKS, 500)
        state.gather()
        if member.rank == 0:
            store = new_store(tmp_path / "run")
            store.save(state.snapshot())
            store.close()
        return state.shown

    def resumed(member: Rank) -> dict:
        with restored(new_store(tmp_path / "run"), member, str(tmp_path)) as (folder, _):
            assert folder is not None
            state = RunState(recipe, dataset, member)
            state.load(folder)
        assert (state.position.step, state.position.before) == (500, None)
        assert all(torch.equal(tensor, ids) for tensor, ids in rows_and_class_ids(state))
        steps(state, member.rank, RANKS, 200)
        state.gather()
        return state.position.state() if member.rank == 0 else {}

    try:
        totals = World(RANKS, PER_NODE).run(first_half)
        assert totals == [int(use_counts.sum())] * RANKS and totals[0] == pytest.approx(SAMPLES * 500 / 1010, rel=0.01)
        position = EpochProgress.of(World(RANKS, PER_NODE).run(resumed)[0])
    finally:
        torch.set_num_threads(before)
    checkpoint = next(path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir())
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size > CLASSES * 4 * (WIDTH * 3 + 1) and bytes_read == dict.fromkeys(bytes_read, size)
    # Train the remaining samples on a different number of ranks.
    rows = RunState(recipe, dataset, World(1).members[0]).rows
    repartitioned = position.repartitioned((48, 4096, 8))
    for rank in range(48):
        for visits in visits_of(plan_of(rows, repartitioned, rank, 48)):
            repartitioned.local[visits] = True
            use_counts[visits] += 1
    assert repartitioned.gather(lambda local: local).all()
    assert (use_counts == 1).all()
