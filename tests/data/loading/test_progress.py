"""Positions: over any kills and any numbers of workers an epoch shows each draw once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark.config import SamplingConfig
from landmark.data.loading.plan import RankPlan, plan_training_epoch
from landmark.data.loading.progress import Position
from landmark.data.loading.sampling import RepeatedDraws, expected_draws
from tests.data.loading.test_plan import make_groups

attempts = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), min_size=1, max_size=6)


def left_of(groups, samples, position: Position):
    """What is left of an epoch: of samples that each come once, or of repeated draws."""
    if samples is not None:
        return RepeatedDraws.of(groups, samples, position.before)
    return groups if position.before is None else groups.select(~position.before)


def batches(plan: RankPlan) -> list[np.ndarray]:
    """The draws of each of a rank's steps, unmixed."""
    draws = np.concatenate([unit.draws for unit in plan.units]) if plan.units else np.zeros(0, dtype=np.int64)
    return np.split(draws, np.cumsum(plan.batch_rows)[:-1]) if plan.steps else []


def run_attempt(groups, samples, position: Position, steps: int | None) -> tuple[list[int], bool]:
    """Take steps on every rank and gather; returns the draws shown, and whether the epoch ended."""
    placed = {"world_size": position.division[0], "batch_size": 8, "seed": 1, "epoch": 1, "resumed": True}
    left = left_of(groups, samples, position)
    ranks = [batches(plan_training_epoch(left, rank=rank, **placed)) for rank in range(position.division[0])]
    assert len({len(rank) for rank in ranks}) == 1
    stop = len(ranks[0]) if steps is None else min(position.step + steps, len(ranks[0]))
    shown = [int(d) for rank in ranks for batch in rank[position.step : stop] for d in batch if d >= 0]
    bitmap = np.zeros(position.length, dtype=bool)
    for draws in zip(*[rank[position.step : stop] for rank in ranks], strict=True):
        position.advance(draws[0])
        bitmap[np.concatenate(draws)[np.concatenate(draws) >= 0]] = True
    position.gather(lambda mine: bitmap.astype(np.uint8))
    return shown, stop == len(ranks[0])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 16), attempts, st.booleans(), st.data())
def test_any_kills_and_workers_show_every_draw_once(shard_rows, size, tries, repeated, data):
    groups, total = make_groups(shard_rows, size), sum(shard_rows)
    samples = (
        np.sort(data.draw(st.lists(st.integers(0, total - 1), min_size=total, max_size=total))) if repeated else None
    )
    position = Position(epoch=1, division=(tries[0][0],), length=total)
    shown: list[int] = []
    for world, steps in [*tries, (2, None)]:
        # Saved and read again, as a checkpoint is.
        position = Position.of(position.state()).redivided((world,))
        found, _ = run_attempt(groups, samples, position, steps)
        shown += found
    assert sorted(shown) == list(range(total))
    assert position.known is not None and position.known.all()


def test_the_same_number_of_workers_goes_on_with_the_next_step_and_another_divides_anew():
    position = Position(epoch=3, division=(2, 8), length=10)
    position.advance(np.array([1, 4]))
    position.gather(lambda mine: mine)
    same = Position.of(position.state()).redivided((2, 8))
    assert (same.step, same.before) == (1, None)
    for division in ((3, 8), (2, 16)):
        other = Position.of(position.state()).redivided(division)
        assert other.step == 0 and np.flatnonzero(other.before).tolist() == [1, 4]


labels = st.lists(st.integers(0, 6), min_size=7, max_size=120).map(np.array)


@given(labels, st.sampled_from(["sqrt", "balanced"]), st.integers(1, 20))
def test_sampling_gives_each_class_its_share_and_an_epoch_its_length(found, name, most):
    config = SamplingConfig(name=name, max_repeats=most)
    each = expected_draws(found, config)
    assert each.sum() == pytest.approx(len(found))
    assert each.max() <= most + 1e-9
    classes = np.unique(found)
    draws = np.array([each[found == label].sum() for label in classes])
    images = np.array([(found == label).sum() for label in classes])
    free = draws < images * most - 1e-9
    weights = np.sqrt(images) if name == "sqrt" else np.ones(len(classes))
    assert np.allclose((draws / weights)[free], (draws / weights)[free].max(initial=0))


def test_repetitions_lie_in_different_parts_of_an_epoch():
    groups = make_groups([64], 8)
    samples = np.sort(np.concatenate([np.arange(48), np.full(16, 3)]))
    chunks = RepeatedDraws.of(groups, samples, None)
    units = [chunks.unit(i, 0, int(rows)) for i, rows in enumerate(chunks.rows)]
    found = np.concatenate([unit.draws for unit in units])
    assert sorted(found.tolist()) == list(range(64))
    assert sum(3 in (unit.first_sample + unit.rows) for unit in units) == 4
    for unit in units:
        assert np.array_equal(samples[unit.draws], unit.first_sample + unit.rows)
