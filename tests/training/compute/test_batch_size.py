"""Tests batch sizes: batches of one image are refused if the model has batch norm; plans are built once per epoch."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import landmark.data.loading.rank_plans as loading
from landmark.config import ComputeConfig, LoaderConfig, ModelConfig, SamplingConfig, UserError, WorkersConfig
from landmark.data.dataset import PackedDataset
from landmark.data.loading.plan import min_batch_rows, plan_training_epoch, training_steps
from landmark.data.loading.progress import EpochProgress
from landmark.training.compute.batch_size import check_batches
from landmark.training.run import run_training
from tests.data.loading.test_plan import make_groups
from tests.support.packed import write_packed
from tests.training.test_run import config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [24, 16], "val": [10], "test": [10]})


def loader(batch_size: int, image_size: int = 32) -> LoaderConfig:
    return LoaderConfig(image_size=image_size, batch_size=batch_size, decode_threads=1, stream="thread")


RESNET = ModelConfig(backbone="resnet18")
REFUSED = [
    ({"loader": loader(1)}, "loader.batch_size 1 with one worker .* raise loader.batch_size to 2 or more"),
    (
        {"loader": loader(2), "workers": WorkersConfig(count=2)},
        "loader.batch_size 2 with 2 workers .* loader.batch_size to 4 or",
    ),
    (
        {"loader": loader(7), "compute": ComputeConfig(accumulate=4)},
        "compute.accumulate 4 gives .* loader.batch_size to 8 or more",
    ),
    (
        {"loader": loader(3), "workers": WorkersConfig(count=2)},
        "batch norm over 1 x 1 maps requires 2 or more; raise .* to 4 or",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=["one", "workers", "parts", "unequal"])
def test_batches_of_one_image_are_refused_before_anything_starts(dataset, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        run_training(config(dataset, tmp_path, model=RESNET, **changes))
    assert "\n" not in str(error.value) and not (tmp_path / "train").exists()


def test_the_suggested_batch_size_trains_and_larger_maps_allow_one(dataset, tmp_path):
    run = config(dataset, tmp_path, model=RESNET, epochs=1, loader=loader(2))
    assert run_training(run).epochs_run == 1
    check_batches(dataclasses.replace(run, loader=loader(1, image_size=64)), 40, 1)
    with pytest.raises(UserError, match="the epoch has 3 images: lower workers.count"):
        check_batches(dataclasses.replace(run, loader=loader(2)), 3, 2)


sizes = st.integers(1, 60)


@given(sizes, st.integers(1, 5), st.integers(1, 24), st.integers(0, 60), st.integers(0, 3))
def test_training_steps_match_the_plan_and_no_batch_has_one_image(total, world, batch, consumed, seed):
    groups = make_groups([total], 7)
    before = np.random.default_rng(seed).permutation(total) < consumed if consumed else None
    if before is None and total < world:
        return
    remaining = groups if before is None else groups.select(~before)
    placed = {"world_size": world, "batch_size": batch, "seed": seed, "epoch": 1, "resumed": before is not None}
    plans = [plan_training_epoch(remaining, rank=rank, **placed) for rank in range(world)]
    rows = int(remaining.rows.sum())
    assert {plan.steps for plan in plans} == {training_steps(rows, world, batch, resumed=before is not None)}
    visits = [int(visit) for plan in plans for task in plan.read_tasks for visit in task.visits if visit >= 0]
    assert sorted(visits) == (list(range(total)) if before is None else np.flatnonzero(~before).tolist())
    min_rows = min((int(plan.batch_rows.min()) for plan in plans if plan.steps), default=2)
    if before is None:
        assert min_rows == min_batch_rows(total, world, batch)
    else:
        assert min_rows >= 2 or batch < 2 * world
    for plan in plans:
        assert sum(len(task.rows) for task in plan.read_tasks) == plan.batch_rows.sum()
        assert all(len(task.rows) == len(task.visits) for task in plan.read_tasks)


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_a_plan_is_built_once_per_epoch_and_progress_counted_once(dataset, tmp_path, monkeypatch, sampling):
    built: list[int] = []

    def counted(*arguments, **options):
        built.append(options["epoch"])
        return plan_training_epoch(*arguments, **options)

    monkeypatch.setattr(loading, "plan_training_epoch", counted)
    run_training(config(dataset, tmp_path, epochs=3, sampling=SamplingConfig(name=sampling)))
    assert built == [1, 2, 3]
    before = np.arange(10) < 4
    position = EpochProgress(epoch=1, partitioning=(1,), length=10, before=before)
    assert position.begun == 4
    before[:] = True  # a second count would return 10
    assert position.begun == 4
