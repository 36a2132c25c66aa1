"""Tests the dry run: the trials, their resources, and the fraction of epochs that a scheduler runs."""

import dataclasses

import pytest

from landmark.config import LoaderConfig, SchedulerConfig
from landmark.data.cache.format import CacheSizes
from landmark.search.dry_run import dry_run_text, kept_fraction, measured_rate, rungs, trial_cost
from landmark.search.spaces.samplers import build_sampler, preview
from landmark.search.spaces.space import Space
from landmark.search.trials.resource_estimates import trial_flops
from landmark.search.trials.shared_cache import planes_too_large, shared_sizes
from tests.support.packed import write_packed

TEXT = """
recipe: {loader: {image_size: 32, batch_size: 16}}
parameters:
  model.backbone: {grid: [resnet18, reference_mlp]}
  optimizer.lr: {grid: [0.1, 0.01]}
  epochs: {grid: [9]}
scheduler: {name: asha, grace_epochs: 1, reduction_factor: 3}
budget: {epochs: 20}
"""


@pytest.fixture
def dataset(tmp_path):
    return write_packed(tmp_path / "packed", {"train": [60, 40], "val": [20]})


def load(text: str, tmp_path) -> Space:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return Space.load(str(file))


def test_the_text_has_every_trial_and_the_totals(dataset, tmp_path):
    space = load(TEXT, tmp_path)
    plans = preview(build_sampler(space, space.recipe()))
    lines = dry_run_text(
        space, plans, {None: dataset}, workers=1, resources="1 CPU", at_a_time=2, gpu=False
    ).splitlines()
    assert lines[0].startswith("4 trials of ") and lines[0].endswith("space.yaml")
    assert lines[1].split() == [
        *("trial", "model.backbone", "optimizer.lr", "epochs", "images", "memory", "GiB", "GFLOP/image"),
    ]
    rows = [line.split() for line in lines[2:6]]
    assert [row[0] for row in rows] == ["001", "002", "003", "004"]
    assert rows[0][1:5] == ["resnet18", "0.1", "9", "900"]
    assert float(rows[0][5]) >= 0.6 and float(rows[0][6]) == pytest.approx(0.07, abs=0.01)
    text = "\n".join(lines[6:])
    assert "each trial requires 1 CPU; 2 run at a time" in text
    assert "36 epochs, 3,600 images" in text
    assert "asha runs about 26% of the epochs (1 of 3 trials continues after 1, 3 epochs): 10 epochs" in text
    assert "budget ends the study after 20 epochs" in text
    assert "GFLOP/s" in text


def test_the_cache_holds_each_image_once_for_trials_with_equal_inputs(tmp_path):
    packed = write_packed(tmp_path / "large", {"train": [64], "val": [16], "test": [8]}, size=128)
    datasets = {None: packed}

    def sizes(grid: str) -> CacheSizes:
        space = load(f"metric: val_top1\nparameters:\n  {grid}\n", tmp_path)
        return shared_sizes(preview(build_sampler(space, space.recipe())), datasets)

    one, rates = sizes("loader.image_size: {grid: [96]}"), sizes("optimizer.lr: {grid: [0.1, 0.2, 0.3]}")
    small, both = sizes("loader.image_size: {grid: [24]}"), sizes("loader.image_size: {grid: [24, 96]}")
    assert one == rates and one.jpeg == small.jpeg == both.jpeg
    assert both.yuv420 == one.yuv420 + small.yuv420 and small.yuv420 < 0.4 * one.yuv420


def test_decoded_images_of_all_trials_have_to_fit_together(tmp_path):
    packed = write_packed(tmp_path / "large", {"train": [64], "val": [16], "test": [8]}, size=128)
    text = "metric: val_top1\nparameters:\n  loader.image_size: {grid: [24, 96]}\n"
    space = load(text, tmp_path)

    def message(gib: float) -> str | None:
        loader = LoaderConfig(cache="/tmp/cache", cache_gib=gib, cache_format="yuv420")
        recipe = dataclasses.replace(space.recipe(), loader=loader)
        return planes_too_large(preview(build_sampler(space, recipe)), {None: packed})

    assert message(1.0) is None
    assert "the cache stores JPEGs instead" in message(0.001)
    plans = preview(build_sampler(space, space.recipe()))
    assert planes_too_large(plans, {None: packed}) is None


def test_adaptive_samplers_are_previewed_with_random_points(dataset, tmp_path):
    searched = TEXT.replace("budget: {epochs: 20}", "samples: 3\nsearcher: {name: optuna}")
    space = load(searched, tmp_path)
    plans = preview(build_sampler(space, space.recipe()))
    text = dry_run_text(space, plans, {None: dataset}, workers=1, resources="1 CPU", at_a_time=1, gpu=False)
    assert text.startswith("3 trials of ") and "example points" in text.splitlines()[0]


def test_progressive_resizing_lowers_the_cost(dataset, tmp_path):
    space = load(TEXT, tmp_path)
    plan = preview(build_sampler(space, space.recipe()))[0]
    cost = trial_cost(plan, dataset, 1, gpu=False)
    assert cost.images == 900
    assert cost.total_flops == pytest.approx(trial_flops(plan.recipe, 4) * 9 * (3 * 100 + 20))
    changed = TEXT.replace("batch_size: 16}", "batch_size: 16}, resizing: {start_size: 16}").replace(
        ", reference_mlp", ""
    )
    resized = load(changed, tmp_path)
    smaller = trial_cost(preview(build_sampler(resized, resized.recipe()))[0], dataset, 1, gpu=False)
    assert smaller.total_flops < 0.9 * cost.total_flops


@pytest.mark.parametrize(
    ("scheduler", "epochs", "fraction"),
    [
        (SchedulerConfig(), [9, 9], 1.0),
        (SchedulerConfig(name="asha", grace_epochs=1), [9], (1 + 2 / 3 + 6 / 9) / 9),
        (SchedulerConfig(name="asha", grace_epochs=9), [9], 1.0),
        (SchedulerConfig(name="asha", grace_epochs=3), [3, 9], (3 + 3 + 6 / 3) / 12),
        # max 9, factor 3: brackets of 9 x 1, 3 x 3, 1 x 9; 5 x 3, 2 x 9; 3 x 9 epochs
        (SchedulerConfig(name="hyperband"), [9] * 9, (9 + 3 * 2 + 6) / 81),
        (SchedulerConfig(name="hyperband"), [9] * 14, (21 + 5 * 3 + 2 * 6) / 126),
        (SchedulerConfig(name="hyperband"), [9] * 17, (21 + 27 + 27) / 153),
        (SchedulerConfig(name="hyperband", brackets=1), [9] * 18, (21 + 21) / 162),
        (SchedulerConfig(name="pbt"), [9], 1.0),
        (SchedulerConfig(name="median_stopping"), [9], None),
    ],
)
def test_fraction_of_epochs_that_schedulers_run(scheduler, epochs, fraction):
    assert kept_fraction(scheduler, epochs) == (None if fraction is None else pytest.approx(fraction))


def test_rungs_grow_from_the_grace_period_to_below_the_longest_trial():
    assert rungs(1, 3.0, 9) == [1, 3]
    assert rungs(2, 3.0, 60) == [2, 6, 18, 54]
    assert rungs(2, 1.5, 7) == [2, 3, 5]
    assert rungs(5, 2.0, 5) == []


def test_compute_throughput_is_measured():
    name, throughput = measured_rate(0.1)
    assert name and 1e8 < throughput < 1e16
