"""Read plans: each row once, and equally many steps on each rank, for any shard sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark.config import UserError
from landmark.data.loading.plan import RankPlan, RowGroups, plan_evaluation, plan_training_epoch


def make_groups(shard_rows: list[int], size: int) -> RowGroups:
    """Row groups of `size` rows, as in the manifest of these shards."""
    shard, row_group, rows = [], [], []
    for index, total in enumerate(shard_rows):
        for number, start in enumerate(range(0, total, size)):
            shard.append(index)
            row_group.append(number)
            rows.append(min(size, total - start))
    counts = np.array(rows)
    return RowGroups(
        shard=np.array(shard),
        row_group=np.array(row_group),
        first_sample=np.cumsum(counts) - counts,
        rows=counts,
        size=counts,
    )


def samples_of(plan: RankPlan) -> list[int]:
    return [int(sample) for task in plan.read_tasks for sample in task.first_sample + task.rows]


shards = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@given(shards, st.integers(1, 16), st.integers(1, 5), st.integers(1, 40), st.integers(0, 3))
def test_a_training_epoch_has_each_sample_once_in_equal_steps(shard_rows, size, world, batch, epoch):
    groups = make_groups(shard_rows, size)
    total = sum(shard_rows)
    if total < world:
        return
    plans = [
        plan_training_epoch(groups, rank=rank, world_size=world, batch_size=batch, seed=3, epoch=epoch)
        for rank in range(world)
    ]
    assert sorted(s for plan in plans for s in samples_of(plan)) == list(range(total))
    assert len({plan.steps for plan in plans}) == 1
    for plan in plans:
        assert plan.batch_rows.sum() == len(samples_of(plan))
        assert plan.batch_rows.min() >= 1
        assert np.allclose(plan.weights, plan.batch_rows * world / sum(other.batch_rows for other in plans))
        assert plan.batch_rows.max() - plan.batch_rows.min() <= 1
    if batch >= world:
        assert plans[0].batch_rows.max() <= -(-batch // world) + (total % world > 0)


@given(shards, st.integers(1, 16), st.integers(1, 5), st.integers(1, 40))
def test_evaluation_counts_every_row_once_in_order(shard_rows, size, world, batch):
    groups = make_groups(shard_rows, size)
    plans = [plan_evaluation(groups, rank=rank, world_size=world, batch_size=batch) for rank in range(world)]
    assert [s for plan in plans for s in samples_of(plan)] == list(range(sum(shard_rows)))
    assert sum(int(plan.batch_rows.sum()) for plan in plans) == sum(shard_rows)


@given(shards, st.integers(1, 16), st.integers(1, 4), st.data())
def test_a_subset_reads_its_samples_once_and_no_other_row_group(shard_rows, size, world, data):
    total = sum(shard_rows)
    selected = np.array(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)))
    if selected.sum() < world:
        return
    groups = make_groups(shard_rows, size).select(selected)
    plans = [
        plan_training_epoch(groups, rank=rank, world_size=world, batch_size=8, seed=1, epoch=1) for rank in range(world)
    ]
    assert sorted(s for plan in plans for s in samples_of(plan)) == np.flatnonzero(selected).tolist()
    assert all(len(task.rows) > 0 for plan in plans for task in plan.read_tasks)


def test_epochs_differ_and_are_reproducible():
    groups = make_groups([256, 256], 16)

    def order(epoch: int, seed: int = 0) -> list[int]:
        return samples_of(plan_training_epoch(groups, rank=0, world_size=1, batch_size=32, seed=seed, epoch=epoch))

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=1)


def test_more_workers_than_images_is_an_error():
    with pytest.raises(UserError, match="3 training images for 4 workers"):
        plan_training_epoch(make_groups([3], 2), rank=0, world_size=4, batch_size=4, seed=0, epoch=1)
