"""Recipes: each has valid keys, builds a model, and can be overridden by flags."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import tyro

from landmark.cli import COMMANDS, parse
from landmark.cli.defaults import recipe_for
from landmark.cli.defaults import train as train_defaults
from landmark.cli.defaults import tune as tune_defaults
from landmark.cli.defaults import tune_from_file as tune_file_defaults
from landmark.config import ModelConfig, Recipe, TrainConfig, TuneConfig, UserError, load_yaml, to_mapping, to_yaml
from landmark.models import build_model, check_name, model_info, stages
from landmark.models.registry import skeleton
from landmark.recipes import load_recipe, merged, recipe_names
from landmark.search.spaces.space import Space, leaf_keys
from landmark.storage import locate
from landmark.training.run import run_training
from tests.support.packed import write_packed
from tests.support.seaweed import Seaweed

DATASET = ["--dataset", "d"]


def train(arguments: list[str]) -> TrainConfig:
    return parse(TrainConfig, [*DATASET, *arguments], "landmark train", train_defaults)


def tune(arguments: list[str]) -> TuneConfig:
    return parse(TuneConfig, [*DATASET, *arguments], "landmark tune", tune_defaults, tune_file_defaults)


def test_every_recipe_has_valid_keys_and_builds():
    assert recipe_names() == ["finetune", "modern", "probe", "reference"]
    for name in recipe_names():
        recipe = load_recipe(name)
        check_name(recipe.model.backbone)
        assert recipe.loader.image_size >= model_info(recipe.model.backbone).image_size
        assert len(stages(skeleton(recipe.model, 10, recipe.loader.image_size))) > recipe.model.freeze_stages
        assert [recipe.shape(epoch) for epoch in (1, recipe.epochs)][-1] == (
            recipe.loader.image_size,
            recipe.loader.batch_size,
        )


def test_the_reference_recipe_matches_the_reference_study():
    recipe = load_recipe("reference")
    assert (recipe.model.backbone, recipe.optimizer.name, recipe.epochs) == ("resnet101", "adam", 20)
    space = Space.load("reference").recipe()
    assert (recipe.augment, recipe.schedule, recipe.loader) == (space.augment, space.schedule, space.loader)


def test_flags_override_a_recipe_and_a_recipe_the_defaults():
    config = train(["--recipe", "reference", "--optimizer.lr", "0.5", "--epochs", "3"])
    expected = merged(to_mapping(load_recipe("reference")), {"optimizer": {"lr": 0.5}, "epochs": 3})
    assert {key: value for key, value in to_mapping(config).items() if key in expected} == expected


def test_a_recipe_can_be_a_file(tmp_path: Path):
    file = tmp_path / "own.yaml"
    file.write_text("epochs: 7\noptimizer: {name: adamw}\n")
    config = train([f"--recipe={file}"])
    assert (config.epochs, config.optimizer.name, config.loader) == (7, "adamw", Recipe().loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--recipe", "modrn"],
            "recipe 'modrn' is neither a file nor a built-in recipe; did you mean 'modern'?",
        ),
        (["--recipe"], "--recipe needs a value; give a name or a file"),
        (
            ["--recipe", "modern", "--config", "run.yaml"],
            "--config and --recipe both set the defaults; remove one of them",
        ),
        (["--recipe", "{}/typo.yaml"], "{}/typo.yaml: unknown key 'optimizer.rate'; did you mean"),
        (["--recipe", "{}/value.yaml"], "{}/value.yaml: epochs is 0; expected 1 or more"),
    ],
)
def test_an_invalid_recipe_is_a_one_line_error(arguments, message, tmp_path: Path):
    (tmp_path / "typo.yaml").write_text("optimizer: {rate: 1}\n")
    (tmp_path / "value.yaml").write_text("epochs: 0\n")
    with pytest.raises(UserError) as error:
        train([argument.format(tmp_path) for argument in arguments])
    assert str(error.value).startswith(message.format(tmp_path)) and "\n" not in str(error.value)


def test_a_study_merges_the_named_recipe_the_space_and_the_flags(tmp_path: Path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "base: reference\nrecipe: {epochs: 5, loader: {batch_size: 16}}\nparameters: {optimizer.lr: {grid: [0.1]}}\n"
    )
    config = tune(["--space", str(space), "--recipe.augment.flip"])
    assert (config.recipe.optimizer.name, config.recipe.epochs, config.recipe.loader.batch_size) == ("adam", 5, 16)
    assert config.recipe.loader.image_size == 299 and config.recipe.augment.flip
    other = tune(["--space", str(space), "--recipe", "finetune"])
    assert other.recipe.optimizer == load_recipe("finetune").optimizer
    assert (other.recipe.epochs, other.recipe.loader.batch_size) == (5, 16)
    (trial,) = Space.load(str(space)).trials(other.recipe)
    assert (trial.recipe.optimizer.name, trial.recipe.optimizer.lr) == ("adamw", 0.1)


def test_a_config_file_and_its_space_are_merged_in_order(tmp_path: Path):
    """The space named in the file sets values that the file omits. The recipe of another space overrides the file."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("recipe: {epochs: 5, loader: {batch_size: 16}}\nparameters: {optimizer.lr: {grid: [0.1]}}\n")
    second.write_text(
        "metric: val_loss\nrecipe: {epochs: 7, ema: {decay: 0.5}}\nparameters: {optimizer.lr: {grid: [0.1]}}\n"
    )
    file = tmp_path / "config.yaml"
    file.write_text(f"dataset: d\nspace: {first}\nrecipe: {{loader: {{batch_size: 24}}}}\n")
    config = tune(["--config", str(file)])
    assert (config.recipe.epochs, config.recipe.loader.batch_size) == (5, 24)
    file.write_text(to_yaml(config))
    assert tune(["--config", str(file)]) == config
    other = tune(["--config", str(file), "--space", str(second), "--recipe.augment.flip"])
    assert (other.space, other.recipe.epochs, other.recipe.ema.decay) == (str(second), 7, 0.5)
    assert (other.recipe.loader.batch_size, other.recipe.monitor) == (24, "val_loss")
    Space.load(other.space).check(other.recipe)


def test_the_saved_config_is_resolved(tmp_path: Path):
    config = train(["--recipe", "reference"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_yaml(TrainConfig, tmp_path / "config.yaml") == config
    assert set(leaf_keys(Recipe)) <= set(leaf_keys(TrainConfig))
    assert tyro.MISSING not in to_mapping(config).values() and "recipe" not in to_mapping(config)


def test_a_run_does_not_change_frozen_stages(tmp_path: Path):
    """After a complete run, weights, statistics and EMA of the frozen stages equal the start weights."""
    write_packed(tmp_path / "dataset", {"train": [24], "val": [8]}, classes=3)
    backbone = "shufflenet_v2_x0_5"
    source = build_model(ModelConfig(backbone=backbone), classes=3, image_size=32)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "start.safetensors")
    config = train(
        [
            *(
                "--recipe",
                "finetune",
                "--dataset",
                f"{tmp_path}/dataset",
                "--output",
                f"{tmp_path}/runs",
                "--epochs",
                "2",
            ),
            *("--model.backbone", backbone, "--model.weights", f"{tmp_path}/start.safetensors"),
            *("--model.freeze-stages", "2", "--loader.image-size", "32", "--loader.batch-size", "8"),
            *("--ema.decay", "0.9", "--no-tensorboard"),
        ]
    )
    run = run_training(config)
    tensors = safetensors.torch.load_file(Path(run.run) / run.last_checkpoint / "model.safetensors")
    changed = {
        name.partition(".")[0] for name, tensor in source.state_dict().items() if not torch.equal(tensor, tensors[name])
    }
    assert changed == {"stage3", "stage4", "conv5", "fc"}


@pytest.mark.parametrize(
    ("arguments", "recipe", "reason"),
    [
        ([], "finetune", "20 training images, and start weights are installed"),
        (["--model", "resnet18"], "modern", "a model is given without start weights"),
        (["--model", "resnet18", "--weights", "w.safetensors"], "finetune", "start weights are given"),
    ],
)
def test_a_run_without_a_recipe_selects_one_and_prints_it(tmp_path: Path, capsys, arguments, recipe, reason):
    write_packed(tmp_path / "d", {"train": [20], "val": [8]}, classes=4)
    parser = COMMANDS["train"].parser()
    chosen = parser.parse([str(tmp_path / "d"), *arguments])
    assert capsys.readouterr().err == f"recipe: {recipe} ({reason}); --recipe NAME chooses another\n"
    named = parser.parse([str(tmp_path / "d"), "--recipe", recipe, *arguments])
    assert chosen == named and capsys.readouterr().err == ""


def test_no_start_weights_or_many_images_select_training_from_scratch(tmp_path: Path, monkeypatch):
    dataset = write_packed(tmp_path / "d", {"train": [20], "val": [8]}, classes=4).location.uri
    monkeypatch.setattr("landmark.cli.defaults.SMALL_DATASET", 19)
    assert recipe_for(dataset, model=None, weights=None) == (
        "modern",
        "20 training images are enough to train from scratch",
    )
    monkeypatch.setattr("landmark.cli.defaults.LITE0", "no_such_package")
    assert recipe_for(dataset, model=None, weights=None)[0] == "modern"


def test_recipe_selection_does_not_fail_on_a_missing_dataset(tmp_path: Path, capsys):
    config = COMMANDS["train"].parser().parse([str(tmp_path / "none")])
    assert config.dataset == str(tmp_path / "none") and capsys.readouterr().err == ""


def test_a_resumed_run_keeps_its_settings_unless_others_are_given(tmp_path: Path):
    dataset = write_packed(tmp_path / "d", {"train": [20], "val": [8]}, classes=4).location.uri
    small = ["--model", "reference_mlp", "--img-size", "16", "--batch-size", "8", "--lr", "0.004", "--no-tensorboard"]
    output_flags = ["-o", str(tmp_path / "runs"), "--name", "mine"]
    parser = COMMANDS["train"].parser()
    run_training(parser.parse([dataset, *output_flags, "--recipe", "modern", "--epochs", "1", *small]))
    resumed = parser.parse([dataset, *output_flags, "--resume", "--epochs", "2"])
    assert (resumed.epochs, resumed.model.backbone, resumed.optimizer.lr) == (2, "reference_mlp", 0.004)
    assert run_training(resumed).epochs_run == 2


def test_recipes_spaces_and_configs_are_read_from_a_bucket(s3: Seaweed):
    for name, text in (
        ("recipe.yaml", "optimizer: {lr: 0.25}\n"),
        ("space.yaml", "metric: val_top1\nbase: modern\nparameters: {optimizer.lr: {grid: [0.1, 0.2]}}\n"),
        ("train.yaml", "epochs: 7\nname: from-bucket\n"),
    ):
        locate(s3.uri(f"files/{name}")).write_text(text)
    assert load_recipe(s3.uri("files/recipe.yaml")).optimizer.lr == 0.25
    assert [point["optimizer.lr"] for point in Space.load(s3.uri("files/space.yaml")).points] == [0.1, 0.2]
    config = train(["--config", s3.uri("files/train.yaml")])
    assert (config.epochs, config.name) == (7, "from-bucket")
    with pytest.raises(UserError, match=r"files/none\.yaml"):
        load_recipe(s3.uri("files/none.yaml"))
