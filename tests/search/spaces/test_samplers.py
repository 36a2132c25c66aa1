"""Where trials come from: lists and Optuna's proposals, their restoration, and networks that cannot take their images."""

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
from landmark.search.spaces.samplers import Listed, OptunaProposals, Proposals, build_proposals, preview
from landmark.search.spaces.space import Space, TrialPlan

CONDITIONAL = """
parameters:
  model.backbone: {grid: [deck_mlp, resnet18]}
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


def proposals(text: str, tmp_path: Path, limit: int | None = None) -> Proposals:
    read = space(text, tmp_path)
    return build_proposals(read, read.recipe(), limit)


def worth(plan: TrialPlan) -> dict[str, float]:
    """A landscape with its peak at adamw, 0.001, on the network with fewer weights."""
    recipe = plan.recipe
    distance = abs(math.log10(recipe.optimizer.lr / 0.001)) + (recipe.optimizer.name == "sgd")
    fast = recipe.model.backbone == "deck_mlp"
    return {
        "val_top1": 1 / (1 + distance),
        "images_per_s": 500.0 if fast else 100.0,
        "parameters": 1e6 if fast else 1e7,
    }


def test_a_list_gives_its_plans_in_order_and_goes_on_after_those_adopted(tmp_path):
    text = "parameters: {optimizer.lr: {grid: [0.1, 0.2, 0.3, 0.4]}}"
    listed = proposals(text, tmp_path, 3)
    assert isinstance(listed, Listed) and listed.total == 3 and len(listed.plans) == 4
    first = listed.next()
    assert first.number == 1 and first.point == {"optimizer.lr": 0.1}
    again = proposals(text, tmp_path, 3)
    again.adopt(first)
    assert [plan.number for plan in preview(again)] == [2, 3]
    assert again.next() is None


def test_a_stored_point_becomes_the_same_plan(tmp_path):
    read = space(CONDITIONAL, tmp_path)
    for plan in preview(build_proposals(read, read.recipe(), 5)):
        assert read.plan(plan.number, json.loads(json.dumps(plan.point)), read.recipe()) == plan


def test_optuna_finds_better_points_than_chance_and_keeps_to_the_cases(tmp_path):
    study = proposals(CONDITIONAL, tmp_path)
    assert isinstance(study, OptunaProposals) and study.total == 40
    reached = []
    while (plan := study.next()) is not None:
        low, high = (0.01, 0.3) if plan.recipe.optimizer.name == "sgd" else (1e-4, 3e-3)
        assert low <= plan.recipe.optimizer.lr <= high and 2 <= plan.recipe.epochs <= 9
        assert plan.parameters["optimizer.lr"] == plan.point["optimizer.lr"]
        reached.append(worth(plan)["val_top1"])
        study.told(plan, worth(plan))
    chance = [worth(plan)["val_top1"] for plan in preview(proposals(CONDITIONAL, tmp_path))]
    assert len(reached) == 40
    assert sum(reached[20:]) / 20 > 1.2 * sum(chance) / len(chance)


@pytest.mark.parametrize("objectives", ["[]", "[val_top1, images_per_s, parameters]"])
def test_a_restored_study_goes_on_as_the_undisturbed_one(objectives, tmp_path):
    text = CONDITIONAL.replace("startup: 5", f"startup: 5, objectives: {objectives}")
    undisturbed = proposals(text, tmp_path)
    given, told = [], []
    for number in range(16):
        given.append(undisturbed.next())
        if number >= 3:  # three trials run at a time; two fail, one by a loss that is no number
            ended = given[number - 3]
            metrics = None if ended.number == 4 else worth(ended)
            if ended.number == 9:
                metrics["val_top1"] = math.nan
            undisturbed.told(ended, metrics)
            told.append((ended, metrics))
    restored = proposals(text, tmp_path)
    for plan in given:
        restored.adopt(plan)
    for ended, metrics in told:
        restored.told(ended, metrics)
    for _ in range(4):
        plan = restored.next()
        assert plan == undisturbed.next()
        undisturbed.told(plan, worth(plan))
        restored.told(plan, worth(plan))
    assert plan.number == 20


def test_of_networks_that_are_as_good_the_one_with_fewer_weights_is_sought_where_asked_for(tmp_path):
    text = CONDITIONAL.replace("startup: 5", "startup: 5, objectives: [val_top1, parameters]")
    study = proposals(text.replace("samples: 40", "samples: 60"), tmp_path)
    late = []
    while (plan := study.next()) is not None:
        study.told(plan, {**worth(plan), "val_top1": 0.5})
        late += [plan] if plan.number > 30 else []
    small = sum(plan.recipe.model.backbone == "deck_mlp" for plan in late)
    assert small > 0.65 * len(late)


def test_a_space_of_lists_is_proposed_without_repetition_to_its_end(tmp_path):
    text = """
parameters:
  optimizer.name: {grid: [sgd, adam]}
  optimizer.momentum: {by: optimizer.name, sgd: {grid: [0.0, 0.9]}}
  epochs: {choice: [2, 3]}
samples: 50
searcher: {name: optuna, startup: 2}
"""
    study = proposals(text, tmp_path)
    assert study.total == 6
    points = []
    while (plan := study.next()) is not None:
        points.append(json.dumps(plan.point))
        study.told(plan, {"val_top1": 0.5})
    assert len(points) == len(set(points)) == 6


def test_combinations_that_no_recipe_can_have_are_passed_over(tmp_path):
    text = """
parameters:
  epochs: {grid: [1, 4]}
  schedule.warmup_epochs: {grid: [0.0, 2.0]}
samples: 4
searcher: {name: optuna}
"""
    found = {(plan.recipe.epochs, plan.recipe.schedule.warmup_epochs) for plan in preview(proposals(text, tmp_path))}
    assert found == {(1, 0.0), (4, 0.0), (4, 2.0)}


def test_a_space_that_is_used_up_is_gone_through_once(tmp_path, monkeypatch):
    """Two of its four points are of no recipe: after the others, nothing is left, which is found once."""
    tried = []
    plan = Space.plan
    monkeypatch.setattr(Space, "plan", lambda *values: tried.append(values) or plan(*values))
    drawn = []
    one, all_points = domains.one_drawn, domains.walked
    monkeypatch.setattr(domains, "one_drawn", lambda *values: drawn.append(values) or one(*values))
    monkeypatch.setattr(
        domains, "walked", lambda *values: (drawn.append(point) or point for point in all_points(*values))
    )
    text = """
parameters:
  epochs: {grid: [1, 4]}
  schedule.warmup_epochs: {grid: [1.0, 2.0]}
samples: 9
searcher: {name: optuna, startup: 1}
"""
    study = proposals(text, tmp_path)
    assert {(plan.recipe.epochs, plan.recipe.schedule.warmup_epochs) for plan in preview(study)} == {(4, 1.0), (4, 2.0)}
    assert len(drawn) < 500
    drawn.clear()
    tried.clear()
    assert [study.next() for _ in range(50)] == [None] * 50
    assert not drawn and not tried


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), size=st.integers(1, 40))
def test_all_points_of_a_list_are_found_whatever_the_order(tmp_path, seed, size):
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
    points = [json.dumps(point, sort_keys=True) for point in domains.walked(parameters, random.Random(seed))]
    assert len(points) == len(set(points)) == 3 * (size + 1)


def test_a_trial_of_another_space_is_refused(tmp_path):
    plan = proposals(CONDITIONAL, tmp_path).next()
    other = proposals(CONDITIONAL.replace("[2, 9]", "[20, 90]"), tmp_path)
    with pytest.raises(UserError, match="is not in this search space"):
        other.adopt(plan)


@pytest.mark.parametrize("searcher", ["listed", "optuna"])
def test_an_image_size_that_a_network_cannot_take_is_told_before_anything_starts(searcher, tmp_path):
    text = f"""
parameters:
  model.backbone: {{choice: [resnet18, inception_v3]}}
  loader.image_size: {{by: model.backbone, inception_v3: {{choice: [64, 75]}}, default: 64}}
samples: 30
searcher: {{name: {searcher}}}
"""
    with pytest.raises(UserError) as error:
        proposals(text, tmp_path)
    assert "space.yaml: trials with model.backbone inception_v3, loader.image_size 64" in str(error.value)
    assert "loader.image_size is 64: inception_v3 does not accept images of this size" in str(error.value)
    assert "\n" not in str(error.value)
    assert proposals(text.replace("[64, 75]", "[75, 96]"), tmp_path).next() is not None


def test_sizes_above_a_networks_own_and_start_sizes_are_tried_too(tmp_path):
    text = "parameters: {model.backbone: {grid: [vit_b_16]}, loader.image_size: {grid: [224, 225]}}"
    with pytest.raises(UserError, match=r"loader.image_size 225: loader.image_size is 225: vit_b_16 does not accept"):
        proposals(text, tmp_path)
    text = "parameters: {model.backbone: {grid: [vit_b_16]}, resizing.start_size: {grid: [null, 112]}}"
    with pytest.raises(
        UserError, match=r"resizing.start_size is 112: vit_b_16 built for 224 pixels does not accept it"
    ):
        proposals(text, tmp_path)


def test_what_optuna_needs_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        UserError, match=r"searcher optuna needs the package optuna; pip install '(optuna|\.\[optuna\])"
    ):
        proposals(CONDITIONAL, tmp_path)


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
def test_a_searcher_that_cannot_be_is_refused(change, message, tmp_path):
    with pytest.raises(UserError) as error:
        space(CONDITIONAL.replace(*change), tmp_path)
    assert message in str(error.value) and "space.yaml" in str(error.value)
