"""Epoch progress: each visit is used once, for any restarts and any numbers of workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark.config import SamplingConfig
from landmark.data.loading.plan import RankPlan, plan_training_epoch
from landmark.data.loading.progress import EpochProgress
from landmark.data.loading.sampling import RepeatedDraws, expected_draws
from tests.data.loading.test_plan import make_groups

attempts = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), min_size=1, max_size=6)


def remaining_rows(groups, samples, position: EpochProgress):
    """Return the remaining rows of an epoch: samples that occur once each, or repeated visits."""
    if samples is not None:
        return RepeatedDraws.of(groups, samples, position.before)
    return groups if position.before is None else groups.select(~position.before)


def batches(plan: RankPlan) -> list[np.ndarray]:
    """Return the visits of each step of a rank, not shuffled."""
    visits = (
        np.concatenate([task.visits for task in plan.read_tasks]) if plan.read_tasks else np.zeros(0, dtype=np.int64)
    )
    return np.split(visits, np.cumsum(plan.batch_rows)[:-1]) if plan.steps else []


def run_attempt(groups, samples, position: EpochProgress, steps: int | None) -> tuple[list[int], bool]:
    """Take steps on each rank and gather. Return the visits that were used, and whether the epoch ended."""
    plan_options = {"world_size": position.partitioning[0], "batch_size": 8, "seed": 1, "epoch": 1, "resumed": True}
    remaining = remaining_rows(groups, samples, position)
    ranks = [
        batches(plan_training_epoch(remaining, rank=rank, **plan_options)) for rank in range(position.partitioning[0])
    ]
    assert len({len(rank) for rank in ranks}) == 1
    stop = len(ranks[0]) if steps is None else min(position.step + steps, len(ranks[0]))
    used = [int(d) for rank in ranks for batch in rank[position.step : stop] for d in batch if d >= 0]
    bitmap = np.zeros(position.length, dtype=bool)
    for visits in zip(*[rank[position.step : stop] for rank in ranks], strict=True):
        position.advance(visits[0])
        bitmap[np.concatenate(visits)[np.concatenate(visits) >= 0]] = True
    position.gather(lambda local: bitmap.astype(np.uint8))
    return used, stop == len(ranks[0])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 16), attempts, st.booleans(), st.data())
def test_restarts_with_any_worker_counts_use_each_draw_once(shard_rows, size, runs, repeated, data):
    groups, total = make_groups(shard_rows, size), sum(shard_rows)
    samples = (
        np.sort(data.draw(st.lists(st.integers(0, total - 1), min_size=total, max_size=total))) if repeated else None
    )
    position = EpochProgress(epoch=1, partitioning=(runs[0][0],), length=total)
    used: list[int] = []
    for world, steps in [*runs, (2, None)]:
        # Save and load the position, like a checkpoint.
        position = EpochProgress.of(position.state()).repartitioned((world,))
        visits, _ = run_attempt(groups, samples, position, steps)
        used += visits
    assert sorted(used) == list(range(total))
    assert position.consumed is not None and position.consumed.all()


def test_the_same_workers_resume_at_the_next_step_and_others_repartition():
    position = EpochProgress(epoch=3, partitioning=(2, 8), length=10)
    position.advance(np.array([1, 4]))
    position.gather(lambda local: local)
    same = EpochProgress.of(position.state()).repartitioned((2, 8))
    assert (same.step, same.before) == (1, None)
    for partitioning in ((3, 8), (2, 16)):
        other = EpochProgress.of(position.state()).repartitioned(partitioning)
        assert other.step == 0 and np.flatnonzero(other.before).tolist() == [1, 4]


labels = st.lists(st.integers(0, 6), min_size=7, max_size=120).map(np.array)


@given(labels, st.sampled_from(["sqrt", "balanced"]), st.integers(1, 20))
def test_sampling_gives_each_class_its_fraction_of_a_full_epoch(found, name, max_repeats):
    config = SamplingConfig(name=name, max_repeats=max_repeats)
    expected = expected_draws(found, config)
    assert expected.sum() == pytest.approx(len(found))
    assert expected.max() <= max_repeats + 1e-9
    classes = np.unique(found)
    visits = np.array([expected[found == label].sum() for label in classes])
    images = np.array([(found == label).sum() for label in classes])
    below_limit = visits < images * max_repeats - 1e-9
    weights = np.sqrt(images) if name == "sqrt" else np.ones(len(classes))
    assert np.allclose((visits / weights)[below_limit], (visits / weights)[below_limit].max(initial=0))


def test_repetitions_are_spread_over_an_epoch():
    groups = make_groups([64], 8)
    samples = np.sort(np.concatenate([np.arange(48), np.full(16, 3)]))
    chunks = RepeatedDraws.of(groups, samples, None)
    read_tasks = [chunks.task(i, 0, int(rows)) for i, rows in enumerate(chunks.rows)]
    found = np.concatenate([task.visits for task in read_tasks])
    assert sorted(found.tolist()) == list(range(64))
    assert sum(3 in (task.first_sample + task.rows) for task in read_tasks) == 4
    for task in read_tasks:
        assert np.array_equal(samples[task.visits], task.first_sample + task.rows)


@pytest.mark.parametrize("before", [None, [0, 3]])
def test_a_position_is_the_same_from_its_file(before):
    mask = None
    if before is not None:
        mask = np.zeros(11, dtype=bool)
        mask[before] = True
    position = EpochProgress(epoch=3, partitioning=(2, 16, 8), length=11, before=mask, consumed=mask, step=5)
    found = EpochProgress.from_bytes(position.to_bytes())
    assert (found.epoch, found.partitioning, found.length, found.step) == (3, (2, 16, 8), 11, 5)
    assert (found.before is None) == (before is None)
    assert before is None or np.flatnonzero(found.before).tolist() == before
