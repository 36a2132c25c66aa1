"""Tests samplers: lists and Optuna, their restoration, and backbones that do not accept the image size."""

import json
import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark.config import UserError
from landmark.search.spaces import domains
from landmark.search.spaces.samplers import ListSampler, OptunaSampler, Sampler, build_sampler, preview
from landmark.search.spaces.space import Space, TrialSpec

CONDITIONAL = """
parameters:
  model.backbone: {grid: [reference_mlp, resnet18]}
  optimizer.name: {choice: [sgd, adamw]}
  optimizer.lr: {by: optimizer.name, sgd: {loguniform: [0.01, 0.3]}, adamw: {loguniform: [1.0e-4, 3.0e-3]}}
  epochs: {int: [2, 9]}
samples: 40
searcher: {name: optuna, startup: 5}
"""


def space(text: str, tmp_path: Path) -> Space:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return Space.load(str(file))


def make_sampler(text: str, tmp_path: Path, limit: int | None = None) -> Sampler:
    read = space(text, tmp_path)
    return build_sampler(read, read.recipe(), limit)


def simulated_metrics(plan: TrialSpec) -> dict[str, float]:
    """Return metrics with their optimum at adamw, learning rate 0.001, and the backbone with fewer weights."""
    recipe = plan.recipe
    distance = abs(math.log10(recipe.optimizer.lr / 0.001)) + (recipe.optimizer.name == "sgd")
    fast = recipe.model.backbone == "reference_mlp"
    return {
        "val_top1": 1 / (1 + distance),
        "images_per_s": 500.0 if fast else 100.0,
        "parameters": 1e6 if fast else 1e7,
    }


def test_a_list_returns_its_trials_in_order_and_skips_restored_ones(tmp_path):
    text = "parameters: {optimizer.lr: {grid: [0.1, 0.2, 0.3, 0.4]}}"
    listed = make_sampler(text, tmp_path, 3)
    assert isinstance(listed, ListSampler) and listed.total == 3 and len(listed.plans) == 4
    first = listed.next()
    assert first.number == 1 and first.point == {"optimizer.lr": 0.1}
    restored = make_sampler(text, tmp_path, 3)
    restored.restore(first)
    assert [plan.number for plan in preview(restored)] == [2, 3]
    assert restored.next() is None


def test_a_stored_point_becomes_the_same_trial(tmp_path):
    read = space(CONDITIONAL, tmp_path)
    for plan in preview(build_sampler(read, read.recipe(), 5)):
        assert read.plan(plan.number, json.loads(json.dumps(plan.point)), read.recipe()) == plan


def test_optuna_beats_random_search_and_respects_cases(tmp_path):
    sampler = make_sampler(CONDITIONAL, tmp_path)
    assert isinstance(sampler, OptunaSampler) and sampler.total == 40
    found = []
    while (plan := sampler.next()) is not None:
        low, high = (0.01, 0.3) if plan.recipe.optimizer.name == "sgd" else (1e-4, 3e-3)
        assert low <= plan.recipe.optimizer.lr <= high and 2 <= plan.recipe.epochs <= 9
        assert plan.parameters["optimizer.lr"] == plan.point["optimizer.lr"]
        found.append(simulated_metrics(plan)["val_top1"])
        sampler.tell(plan, simulated_metrics(plan))
    random_search = [simulated_metrics(plan)["val_top1"] for plan in preview(make_sampler(CONDITIONAL, tmp_path))]
    assert len(found) == 40
    assert sum(found[20:]) / 20 > 1.2 * sum(random_search) / len(random_search)


@pytest.mark.parametrize("objectives", ["[]", "[val_top1, images_per_s, parameters]"])
def test_a_restored_sampler_continues_like_an_uninterrupted_one(objectives, tmp_path):
    text = CONDITIONAL.replace("startup: 5", f"startup: 5, objectives: {objectives}")
    uninterrupted = make_sampler(text, tmp_path)
    proposed, results = [], []
    for number in range(16):
        proposed.append(uninterrupted.next())
        if number >= 3:  # three trials run at a time; two fail, one with a metric of NaN
            ended = proposed[number - 3]
            metrics = None if ended.number == 4 else simulated_metrics(ended)
            if ended.number == 9:
                metrics["val_top1"] = math.nan
            uninterrupted.tell(ended, metrics)
            results.append((ended, metrics))
    restored = make_sampler(text, tmp_path)
    for plan in proposed:
        restored.restore(plan)
    for ended, metrics in results:
        restored.tell(ended, metrics)
    for _ in range(4):
        plan = restored.next()
        assert plan == uninterrupted.next()
        uninterrupted.tell(plan, simulated_metrics(plan))
        restored.tell(plan, simulated_metrics(plan))
    assert plan.number == 20


def test_multi_objective_search_prefers_the_smaller_of_equal_backbones(tmp_path):
    text = CONDITIONAL.replace("startup: 5", "startup: 5, objectives: [val_top1, parameters]")
    sampler = make_sampler(text.replace("samples: 40", "samples: 60"), tmp_path)
    late = []
    while (plan := sampler.next()) is not None:
        sampler.tell(plan, {**simulated_metrics(plan), "val_top1": 0.5})
        late += [plan] if plan.number > 30 else []
    small = sum(plan.recipe.model.backbone == "reference_mlp" for plan in late)
    assert small > 0.65 * len(late)


def test_optuna_proposes_each_point_of_a_finite_space_once(tmp_path):
    text = """
parameters:
  optimizer.name: {grid: [sgd, adam]}
  optimizer.momentum: {by: optimizer.name, sgd: {grid: [0.0, 0.9]}}
  epochs: {choice: [2, 3]}
samples: 50
searcher: {name: optuna, startup: 2}
"""
    sampler = make_sampler(text, tmp_path)
    assert sampler.total == 6
    points = []
    while (plan := sampler.next()) is not None:
        points.append(json.dumps(plan.point))
        sampler.tell(plan, {"val_top1": 0.5})
    assert len(points) == len(set(points)) == 6


def test_combinations_that_are_no_valid_recipe_are_skipped(tmp_path):
    text = """
parameters:
  epochs: {grid: [1, 4]}
  schedule.warmup_epochs: {grid: [0.0, 2.0]}
samples: 4
searcher: {name: optuna}
"""
    found = {(plan.recipe.epochs, plan.recipe.schedule.warmup_epochs) for plan in preview(make_sampler(text, tmp_path))}
    assert found == {(1, 0.0), (4, 0.0), (4, 2.0)}


def test_an_exhausted_space_is_searched_only_once(tmp_path, monkeypatch):
    """Two of four points are no valid recipes. After the other two, the sampler looks for more points only once."""
    tried = []
    plan = Space.plan
    monkeypatch.setattr(Space, "plan", lambda *values: tried.append(values) or plan(*values))
    sampled = []
    one, all_points = domains.sample_point, domains.enumerated_points
    monkeypatch.setattr(domains, "sample_point", lambda *values: sampled.append(values) or one(*values))
    monkeypatch.setattr(
        domains, "enumerated_points", lambda *values: (sampled.append(point) or point for point in all_points(*values))
    )
    text = """
parameters:
  epochs: {grid: [1, 4]}
  schedule.warmup_epochs: {grid: [1.0, 2.0]}
samples: 9
searcher: {name: optuna, startup: 1}
"""
    sampler = make_sampler(text, tmp_path)
    assert {(plan.recipe.epochs, plan.recipe.schedule.warmup_epochs) for plan in preview(sampler)} == {
        (4, 1.0),
        (4, 2.0),
    }
    assert len(sampled) < 500
    sampled.clear()
    tried.clear()
    assert [sampler.next() for _ in range(50)] == [None] * 50
    assert not sampled and not tried


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), size=st.integers(1, 40))
def test_all_points_of_a_finite_space_are_found_in_any_order(tmp_path, seed, size):
    text = f"""
parameters:
  optimizer.name: {{grid: [sgd, adam]}}
  optimizer.momentum: {{by: optimizer.name, sgd: {{grid: [0.0, 0.9]}}}}
  loader.batch_size: {{int: [1, {size + 1}]}}
samples: 999
seed: {seed}
searcher: {{name: optuna}}
"""
    parameters = space(text, tmp_path).parameters
    points = [json.dumps(point, sort_keys=True) for point in domains.enumerated_points(parameters, random.Random(seed))]
    assert len(points) == len(set(points)) == 3 * (size + 1)


def test_a_trial_of_another_space_is_refused(tmp_path):
    plan = make_sampler(CONDITIONAL, tmp_path).next()
    other = make_sampler(CONDITIONAL.replace("[2, 9]", "[20, 90]"), tmp_path)
    with pytest.raises(UserError, match="is not in this search space"):
        other.restore(plan)


@pytest.mark.parametrize("searcher", ["listed", "optuna"])
def test_an_unsupported_image_size_is_an_error_before_the_study_starts(searcher, tmp_path):
    text = f"""
parameters:
  model.backbone: {{choice: [resnet18, inception_v3]}}
  loader.image_size: {{by: model.backbone, inception_v3: {{choice: [64, 75]}}, default: 64}}
samples: 30
searcher: {{name: {searcher}}}
"""
    with pytest.raises(UserError) as error:
        make_sampler(text, tmp_path)
    assert "space.yaml: trials with model.backbone inception_v3, loader.image_size 64" in str(error.value)
    assert "loader.image_size is 64: inception_v3 does not accept images of this size" in str(error.value)
    assert "\n" not in str(error.value)
    assert make_sampler(text.replace("[64, 75]", "[75, 96]"), tmp_path).next() is not None


def test_sizes_above_the_default_and_start_sizes_are_checked(tmp_path):
    text = "parameters: {model.backbone: {grid: [vit_b_16]}, loader.image_size: {grid: [224, 225]}}"
    with pytest.raises(UserError, match=r"loader.image_size 225: loader.image_size is 225: vit_b_16 does not accept"):
        make_sampler(text, tmp_path)
    text = "parameters: {model.backbone: {grid: [vit_b_16]}, resizing.start_size: {grid: [null, 112]}}"
    with pytest.raises(
        UserError, match=r"resizing.start_size is 112: vit_b_16 built for 224 pixels does not accept it"
    ):
        make_sampler(text, tmp_path)


def test_a_missing_optuna_package_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        UserError, match=r"searcher optuna needs the package optuna; pip install '(optuna|\.\[optuna\])"
    ):
        make_sampler(CONDITIONAL, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("samples: 40", ""), "samples is 1; searcher optuna requires it as the number of trials"),
        (("startup: 5", "startup: 0"), "searcher.startup is 0"),
        (("startup: 5", "objectives: [images_per_s]"), "expected the metric, val_top1, and in addition"),
        (("startup: 5", "objectives: [val_loss, parameters]"), "expected the metric, val_top1"),
        (("startup: 5", "objectives: [val_top1, val_top1]"), "contains val_top1 twice"),
        (("startup: 5", "objectives: [speed]"), "expected one of"),
        (("name: optuna, startup: 5", "objectives: [val_top1]"), "set searcher.name to optuna"),
        (("name: optuna", "name: optna"), "did you mean 'optuna'"),
    ],
)
def test_invalid_searcher_settings_are_refused(change, message, tmp_path):
    with pytest.raises(UserError) as error:
        space(CONDITIONAL.replace(*change), tmp_path)
    assert message in str(error.value) and "space.yaml" in str(error.value)
