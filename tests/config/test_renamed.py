"""Tests that files of earlier versions, with the names of those versions, still load with a warning."""

import pytest

from landmark.cli import main
from landmark.config import EvaluateConfig, Recipe, TuneConfig, UserError, from_mapping, parse_yaml, renamed, to_mapping
from landmark.recipes import load_recipe
from landmark.search.spaces.space import Space

OLD_RECIPE = """
model: {backbone: deck_mlp, neck: 8, head: {name: arcface, margin_least: 0.1}}
loader: {image_size: 16, damaged: skip}
augment: {mixup: 0.2, mix_share: 0.5}
"""


@pytest.fixture(autouse=True)
def no_warnings_yet(monkeypatch):
    monkeypatch.setattr(renamed, "_warned", set())


def test_old_keys_and_values_of_a_recipe_load_with_one_warning_each(capsys):
    recipe = parse_yaml(Recipe, OLD_RECIPE, "old.yaml")
    assert parse_yaml(Recipe, OLD_RECIPE, "again.yaml") == recipe
    assert (recipe.model.backbone, recipe.model.head.min_margin) == ("reference_mlp", 0.1)
    assert (recipe.loader.corrupt, recipe.augment.mix_prob) == ("skip", 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "warning: old.yaml: 'deck_mlp' of 'model.backbone' is now 'reference_mlp'",
        "warning: old.yaml: 'model.head.margin_least' is now 'model.head.min_margin'",
        "warning: old.yaml: 'loader.damaged' is now 'loader.corrupt'",
        "warning: old.yaml: 'augment.mix_share' is now 'augment.mix_prob'",
    ]


def test_what_is_written_has_the_names_of_this_version():
    text = str(to_mapping(parse_yaml(Recipe, OLD_RECIPE, "old.yaml")))
    assert not any(name in text for name in ("deck", "margin_least", "damaged", "mix_share"))


def test_an_old_key_next_to_its_new_name_is_an_error():
    values = {"loader": {"damaged": "skip", "corrupt": "stop"}}
    with pytest.raises(UserError, match=r"old\.yaml: 'loader\.damaged' is now 'loader\.corrupt', and both are set"):
        from_mapping(Recipe, values, "old.yaml")


def test_an_old_value_of_one_option_is_no_value_of_another():
    with pytest.raises(UserError, match="by"):
        from_mapping(EvaluateConfig, {"run": "runs/a", "by": "deck_mlp"}, "old.yaml")
    assert from_mapping(EvaluateConfig, {"run": "deck", "by": "neighbours"}, "old.yaml").by == "knn"


def test_an_old_search_space_searches_the_same_points(tmp_path, capsys):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(
        "metric: val_top1\nbase: deck\nrecipe: {model: {neck: 8, head: {name: arcface}}}\nparameters:\n"
        "  model.backbone: {grid: [deck_mlp, resnet18]}\n  model.head.margin_least: {grid: [0.05, 0.1]}\n"
    )
    text = old.read_text().replace("deck_mlp", "reference_mlp").replace("deck", "reference")
    new.write_text(text.replace("margin_least", "min_margin"))
    assert Space.load(str(old)).points == Space.load(str(new)).points
    assert "'model.head.margin_least' is now 'model.head.min_margin'" in capsys.readouterr().err


def test_cases_of_a_conditional_domain_load_by_their_old_names(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "metric: val_top1\nparameters:\n  model.backbone: {grid: [deck_mlp, resnet18]}\n"
        "  optimizer.lr: {by: model.backbone, deck_mlp: {grid: [0.1, 0.2]}, default: 0.5}\n"
    )
    points = {(point["model.backbone"], point["optimizer.lr"]) for point in Space.load(str(file)).points}
    assert points == {("reference_mlp", 0.1), ("reference_mlp", 0.2), ("resnet18", 0.5)}


def test_the_recipe_and_the_space_of_the_reference_study_are_found_by_their_old_names(capsys):
    assert load_recipe("deck") == load_recipe("reference")
    assert Space.load("deck").points == Space.load("reference").points
    assert "warning: command line: 'deck' of '--recipe' is now 'reference'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["evaluate", "run", "--neighbours", "3"], "'--neighbours' is now '--neighbors'"),
        (
            ["train", "data", "--model.head.margin-least", "0"],
            "'--model.head.margin-least' is now '--model.head.min-margin'",
        ),
        (["tune", "data", "--space", "small", "--resize-once"], "'--resize-once' is now '--cache-format'"),
        (["report", "--deck", "runs/a"], "'--deck' is now '--reference'"),
    ],
)
def test_an_old_flag_is_an_error_that_names_the_new_one(arguments, line, capsys):
    assert main(arguments) == 2
    assert line in capsys.readouterr().err


def test_a_removed_switch_of_a_study_still_loads_and_is_reported_only_if_it_was_on(capsys):
    values = {"dataset": "d", "space": "small", "resize_once": False}
    assert from_mapping(TuneConfig, values, "old.yaml") == TuneConfig(dataset="d", space="small")
    assert capsys.readouterr().err == ""
    assert from_mapping(TuneConfig, values | {"resize_once": True}, "old.yaml").dataset == "d"
    assert capsys.readouterr().err == (
        "warning: old.yaml: 'resize_once' was removed and has no effect; set 'recipe.loader.cache_format' and the other "
        "options of the cache instead\n"
    )
    with pytest.raises(UserError, match="unknown key 'resize_once'"):
        from_mapping(Recipe, {"resize_once": False}, "old.yaml")
