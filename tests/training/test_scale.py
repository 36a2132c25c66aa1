"""64 ranks, 4,132,914 images and 203,094 classes: plan, account, checkpoint and restore, by the code that runs train with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from landmark.data.loading.progress import Position
from landmark.storage import Location
from landmark.training.distributed.restore import restored
from landmark.training.loop.state import RunState
from tests.support.ranks import Rank, World
from tests.support.scale import (
    CLASSES,
    PER_NODE,
    RANKS,
    SAMPLES,
    draws_of,
    full_recipe,
    new_store,
    plan_of,
    write_metadata,
)

WIDTH = 2


def mark(state: RunState) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's rows of weights and optimizer's state, and what they are to hold: the number of their class."""
    assert state.step.centres is not None
    pairs = []
    for optimizer in state.step.centres.optimizers.values():
        first, rows = optimizer.first, len(optimizer.state["mean"])
        for number, tensor in enumerate([optimizer.weight[first : first + rows], *dict(optimizer.tensors()).values()]):
            ids = torch.arange(first, first + rows, dtype=torch.float32) + number * CLASSES
            pairs.append((tensor, ids.view(-1, *[1] * (tensor.ndim - 1)).expand_as(tensor)))
    return pairs


def test_64_ranks_show_4_million_images_once_and_read_a_checkpoint_once_per_node(tmp_path, monkeypatch):
    dataset = write_metadata(tmp_path / "dataset")
    recipe = full_recipe(WIDTH, subcenters=1)
    download, read = Location.download, dict.fromkeys(range(RANKS // PER_NODE), 0)

    def counted(self: Location, target: Path) -> None:
        download(self, target)
        read[int(target.parent.name.rsplit("-", 1)[1])] += target.stat().st_size

    monkeypatch.setattr(Location, "download", counted)
    shown = np.zeros(SAMPLES, dtype=np.int64)
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def steps(state: RunState, rank: int, world_size: int, count: int | None) -> None:
        position = state.position
        every = draws_of(plan_of(state.rows, position, rank, world_size))
        for draws in every[position.step :][:count]:
            position.advance(draws)
            shown[draws] += 1

    def first_half(member: Rank) -> int:
        state = RunState(recipe, dataset, member)
        for tensor, ids in mark(state):
            tensor.copy_(ids)
        steps(state, member.rank, RANKS, 500)
        state.gather()
        if member.rank == 0:
            saving = new_store(tmp_path / "run")
            saving.save(state.snapshot())
            saving.close()
        return state.shown

    def resumed(member: Rank) -> dict:
        with restored(new_store(tmp_path / "run"), member, str(tmp_path)) as (folder, _):
            assert folder is not None
            state = RunState(recipe, dataset, member)
            state.load(folder)
        assert (state.position.step, state.position.before) == (500, None)
        assert all(torch.equal(tensor, ids) for tensor, ids in mark(state))
        steps(state, member.rank, RANKS, 200)
        state.gather()
        return state.position.state() if member.rank == 0 else {}

    try:
        seen = World(RANKS, PER_NODE).run(first_half)
        assert seen == [int(shown.sum())] * RANKS and seen[0] == pytest.approx(SAMPLES * 500 / 1010, rel=0.01)
        position = Position.of(World(RANKS, PER_NODE).run(resumed)[0])
    finally:
        torch.set_num_threads(before)
    checkpoint = next(path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir())
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size > CLASSES * 4 * (WIDTH * 3 + 1) and read == dict.fromkeys(read, size)
    # The rest on another number of ranks.
    rows = RunState(recipe, dataset, World(1).members[0]).rows
    rest = position.redivided((48, 4096, 8))
    for rank in range(48):
        for draws in draws_of(plan_of(rows, rest, rank, 48)):
            rest.mine[draws] = True
            shown[draws] += 1
    assert rest.gather(lambda mine: mine).all()
    assert (shown == 1).all()
