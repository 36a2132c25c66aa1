"""Tests search spaces: the contents of the shipped ones, and errors that name the file and the key."""

from pathlib import Path

import pytest

from landmark.config import Recipe, SchedulerConfig, UserError
from landmark.search.schedulers.build import check_scheduler
from landmark.search.spaces.samplers import build_sampler, preview
from landmark.search.spaces.space import Space, leaf_keys, space_names

REFERENCE = [
    ("resnet50", "sgd", 10, "large"),
    ("resnet50", "sgd", 10, None),
    ("resnet101", "sgd", 10, None),
    ("inception_v3", "sgd", 10, None),
    ("inception_v3", "rmsprop", 10, None),
    ("inception_v3", "adam", 10, None),
    ("resnet101", "rmsprop", 10, None),
    ("resnet101", "rmsprop", 20, None),
    ("resnet101", "adam", 20, None),
    ("resnet101", "adam", 20, "cleaned"),
    ("resnet101", "sgd", 30, "cleaned"),
    ("resnet101", "sgd", 100, "cleaned"),
]


def plans(text: str, tmp_path: Path):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    space = Space.load(str(file))
    return space.trials(space.recipe())


def test_the_reference_space_has_the_runs_of_the_reference_study():
    space = Space.load("reference")
    trials = space.trials(space.recipe())
    found = [(t.recipe.model.backbone, t.recipe.optimizer.name, t.recipe.epochs, t.dataset) for t in trials]
    assert found == REFERENCE
    assert {t.recipe.optimizer.lr for t in trials if t.recipe.optimizer.name == "sgd"} == {0.01}
    assert {t.recipe.optimizer.lr for t in trials if t.recipe.optimizer.name != "sgd"} == {0.001}
    assert all(t.recipe.optimizer.momentum == 0 and not t.recipe.augment.flip for t in trials)
    assert [t.recipe.early_stopping.patience for t in trials] == [None] * 11 + [10]
    assert len({t.name for t in trials}) == 12


def test_every_shipped_space_has_trials():
    assert {"reference", "demo", "small", "backbone_optimizer_epochs", "modern"} <= set(space_names())
    for name in space_names():
        space = Space.load(name)
        trials = preview(build_sampler(space, space.recipe()))
        assert trials and len({trial.name for trial in trials}) == len(trials)
        check_scheduler(
            space.config.scheduler,
            space.config.metric,
            space.config.mode(),
            max(trial.recipe.epochs for trial in trials),
        )
    cross = Space.load("backbone_optimizer_epochs")
    assert len(cross.trials(cross.recipe())) == 3 * 3 * 2


def test_grids_are_crossed_and_random_values_depend_on_the_seed(tmp_path):
    text = """
parameters:
  model.backbone: {grid: [resnet18, vgg11]}
  optimizer.lr: {loguniform: [0.001, 0.1]}
  optimizer.name: {choice: [sgd, adam]}
  optimizer.momentum: {uniform: [0.5, 0.9]}
samples: 5
"""
    found = plans(text, tmp_path)
    assert len(found) == 10
    assert all(0.001 <= t.recipe.optimizer.lr <= 0.1 and 0.5 <= t.recipe.optimizer.momentum <= 0.9 for t in found)
    assert [t.parameters for t in found] == [t.parameters for t in plans(text, tmp_path)]
    assert [t.parameters for t in found] != [t.parameters for t in plans(text + "seed: 1\n", tmp_path)]


def test_samples_equal_those_of_studies_older_than_cases(tmp_path):
    text = """
parameters:
  optimizer.lr: {loguniform: [0.001, 0.1]}
  model.backbone: {grid: [resnet18, vgg11]}
  optimizer.name: {choice: [sgd, adam]}
samples: 2
seed: 7
"""
    learning_rates = [0.00444288968124421, 0.006160940191909269, 0.0013959587116837906, 0.005387382780493348]
    found = plans(text, tmp_path)
    assert [trial.parameters["model.backbone"] for trial in found] == ["resnet18", "vgg11"] * 2
    assert [trial.parameters["optimizer.lr"] for trial in found] == pytest.approx(learning_rates, rel=1e-9)
    assert [trial.parameters["optimizer.name"] for trial in found] == ["sgd"] * 4


def test_the_modern_space_fits_each_backbone():
    space = Space.load("modern")
    trials = space.trials(space.recipe())
    assert len(trials) == 48 and len({t.recipe.model.backbone for t in trials}) == 4
    for trial in trials:
        recipe = trial.recipe
        sgd = recipe.optimizer.name == "sgd"
        assert (recipe.optimizer.clip_norm is None) == sgd == (recipe.optimizer.lr >= 0.03)
        assert recipe.loader.batch_size == (512 if recipe.loader.image_size == 304 else 1024)
        assert not (sgd and recipe.model.backbone == "convnext_tiny")
        assert ("augment.randaugment_magnitude" in trial.point) == (recipe.augment.randaugment_ops == 2)
        assert trial.parameters["augment.randaugment_magnitude"] == recipe.augment.randaugment_magnitude
    assert any(recipe.resizing.start_size == 128 for recipe in (t.recipe for t in trials))


def test_the_embeddings_space_has_margins_that_fit_each_head():
    space = Space.load("embeddings")
    heads = [trial.recipe.model.head for trial in space.trials(space.recipe())]
    assert len(heads) == 24 and {head.name for head in heads} == {"arcface", "subcenter", "cosface"}
    assert all(head.margin in ((0.2, 0.35) if head.name == "cosface" else (0.3, 0.5)) for head in heads)
    assert {head.sample for head in heads} == {0.1} and {head.min_margin for head in heads} == {None, 0.05}


def test_without_a_matching_case_the_value_of_the_recipe_is_used(tmp_path):
    text = """
recipe: {optimizer: {momentum: 0.5}}
parameters:
  optimizer.name: {grid: [sgd, adam]}
  optimizer.momentum: {by: optimizer.name, sgd: {grid: [0.0, 0.9]}}
"""
    found = plans(text, tmp_path)
    assert [trial.recipe.optimizer.momentum for trial in found] == [0.0, 0.9, 0.5]
    assert [trial.parameters["optimizer.momentum"] for trial in found] == [0.0, 0.9, 0.5]
    assert [trial.point for trial in found][2] == {"optimizer.name": "adam"}
    assert [trial.number for trial in found] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "parameters: {optimizer.name: {choice: [sgd, adam]}, optimizer.lr: {by: optimizer.name, sgd: 0.1, adam: -1}}",
            "space.yaml: parameters.optimizer.lr.adam: optimizer.lr is -1.0; expected above 0",
        ),
        (
            "parameters: {epochs: {choice: [5]}, optimizer.name: {by: epochs, 5: {choice: [sgd, adm]}}}",
            "space.yaml: parameters.optimizer.name.5.choice: key 'optimizer.name' is 'adm'; did you mean 'adam'",
        ),
        ("parameters: {epochs: {by: epoch, 5: 1}}", "parameters.epochs.by is 'epoch', which is not searched"),
        (
            "parameters: {model.bakbone: {grid: [resnet18]}}",
            "model.bakbone: not a key of a recipe; did you mean 'model.backbone'",
        ),
        ("parameters: {model.backbone: {grid: [resnt18]}}", "model.backbone is 'resnt18'; did you mean 'resnet18'"),
        ("parameters: {epochs: {grid: []}}", "parameters.epochs.grid is empty"),
        ("parameters: {epochs: {gird: [1]}}", "unknown kind 'gird'; did you mean 'grid'"),
        ("parameters: {epochs: {grid: [0]}}", "epochs is 0; expected 1 or more"),
        ("parameters: {epochs: 5}", "parameters.epochs is 5; expected {grid"),
        ("parameters: {optimizer: {grid: [sgd]}}", "optimizer is a group; give one of its keys"),
        ("parameters: {optimizer.lr: {uniform: [0.1]}}", "expected two numbers"),
        ("parameters: {optimizer.lr: {loguniform: [0, 1]}}", "expected bounds above 0"),
        ("parameters: {optimizer.name: {choice: [sgd, adm]}}", "optimizer.name' is 'adm'; did you mean 'adam'"),
        ("points: [{epochs: 2, optimizer.nam: sgd}]", "row 1: optimizer.nam: not a key"),
        ("metrik: val_top1\nparameters: {epochs: {grid: [1]}}", "unknown key 'metrik'; did you mean 'metric'"),
        ("metric: val_top2\nparameters: {epochs: {grid: [1]}}", "'metric' is 'val_top2'; did you mean 'val_top"),
        (
            "scheduler: {name: asah}\nparameters: {epochs: {grid: [1]}}",
            "scheduler.name is 'asah'; did you mean 'asha'",
        ),
        ("budget: {epochs: 0}\nparameters: {epochs: {grid: [1]}}", "budget.epochs is 0"),
        ("recipe: {epoch: 3}\nparameters: {seed: {grid: [1]}}", "unknown key 'epoch'; did you mean 'epochs'"),
        ("recipe: {monitor: val_loss}\nparameters: {seed: {grid: [1]}}", "recipe.monitor is set by the space's metric"),
        ("parameters: {epochs: {grid: [1]}}\npoints: [{epochs: 1}]", "both 'parameters' and 'points'"),
        ("metric: val_top1", "neither 'parameters' nor 'points'"),
        ("samples: 3\nparameters: {epochs: {grid: [1]}}", "no parameter is random"),
        ("parameters: [", "line 1"),
    ],
)
def test_an_error_is_one_line_with_file_and_key(text, message, tmp_path):
    with pytest.raises(UserError) as error:
        plans(text, tmp_path)
    assert message in str(error.value)
    assert "space.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_space_gets_a_suggestion():
    with pytest.raises(UserError, match="--space dem: neither a file nor .* did you mean 'demo'"):
        Space.load("dem")


def test_leaf_keys_are_the_fields_of_a_recipe():
    keys = leaf_keys(Recipe)
    assert {"epochs", "model.backbone", "optimizer.lr", "loader.image_size", "early_stopping.patience"} <= set(keys)
    assert "optimizer" not in keys


def test_a_grace_period_beyond_every_trial_is_refused():
    with pytest.raises(UserError, match="scheduler.grace_epochs is 5, but the longest trial has 3"):
        check_scheduler(SchedulerConfig(name="asha", grace_epochs=5), "val_top1", "max", 3)
