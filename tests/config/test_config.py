"""Configs: YAML round trips, and errors that name the file, the key and the closest valid name."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark.cli import main, parse
from landmark.cli.options import short_flags
from landmark.config import (
    EvaluateConfig,
    FoldersConfig,
    LoaderConfig,
    OptimizerConfig,
    PrepareConfig,
    Recipe,
    SubsetConfig,
    TrainConfig,
    TuneConfig,
    UserError,
    load_yaml,
    nearest,
    parse_yaml,
    to_yaml,
)

recipes = st.builds(
    Recipe,
    epochs=st.integers(2, 100),
    seed=st.integers(0, 2**31),
    optimizer=st.builds(
        OptimizerConfig,
        name=st.sampled_from(["sgd", "rmsprop", "adam", "adamw"]),
        lr=st.none() | st.floats(1e-6, 1, allow_nan=False),
        momentum=st.floats(0, 0.99),
    ),
)


@given(recipes)
def test_recipes_round_trip_through_yaml(recipe):
    assert parse_yaml(Recipe, to_yaml(recipe), "x.yaml") == recipe


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(dataset="s3://b/d"),
        TuneConfig(dataset="d", space="demo"),
        EvaluateConfig(run="c", topk=(1, 3)),
        PrepareConfig(output="o", source="synthetic"),
        PrepareConfig(output="o", folders=FoldersConfig(path="photos")),
        SubsetConfig(licenses=("CC BY",), classes=3),
    ],
)
def test_every_config_round_trips_through_yaml(config):
    assert parse_yaml(type(config), to_yaml(config), "x.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "x.yaml: unknown key 'epoch'; did you mean 'epochs'?"),
        ("optimizer: {nam: adam}", "x.yaml: unknown key 'optimizer.nam'; did you mean 'name'?"),
        ("optimizer: {name: adm}", "x.yaml: key 'optimizer.name' is 'adm'; did you mean 'adam'?"),
        ("epochs: 0", "x.yaml: epochs is 0; expected 1 or more"),
        ("epochs: many", "x.yaml: key 'epochs' is 'many'; input should be a valid integer"),
        ("optimizer: {lr: -1}", "x.yaml: optimizer.lr is -1"),
        ("loader: {batch_size: 0}", "x.yaml: loader.batch_size is 0; expected 1 or more"),
        ("augment: {crop_area: [0.9, 0.1]}", "x.yaml: augment.crop_area is 0.9 0.1; expected"),
        ("- a", "x.yaml: expected 'key: value' lines at the top, got list"),
        ("a: [", "x.yaml: line 1, column"),
        ("schedule: {warmup_epochs: 30}", "x.yaml: schedule.warmup_epochs is 30"),
    ],
)
def test_a_yaml_error_is_one_line_with_file_and_key(text, message):
    with pytest.raises(UserError) as error:
        parse_yaml(Recipe, text, "x.yaml")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_missing_key_are_reported(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.yaml: cannot read the config file"):
        load_yaml(Recipe, tmp_path / "none.yaml")
    with pytest.raises(UserError, match="key 'dataset' is missing"):
        parse_yaml(TrainConfig, "epochs: 3", "x.yaml")


def test_an_unknown_name_gets_the_closest_one_or_a_short_list():
    assert nearest("resnt50", ["resnet50", "vgg16"]) == "did you mean 'resnet50'?"
    assert nearest("zzz", ["a", "b"]) == "expected one of: a, b"
    assert nearest("zzz", [f"name{i}" for i in range(30)]).startswith("there are 30 valid names")


def test_every_field_is_a_documented_flag(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--help-all"]) == 0
    text = capsys.readouterr().out
    short = {full: flag for flag, full in short_flags(TrainConfig).items()}

    def flags(kind: type, prefix: str = "--") -> list[str]:
        found = []
        for field in dataclasses.fields(kind):
            name = prefix + field.name.replace("_", "-")
            nested = dataclasses.is_dataclass(field.type)
            found += flags(field.type, name + ".") if nested else [name]
        return found

    assert len(flags(TrainConfig)) > 35
    for flag in flags(TrainConfig):
        assert short.get(flag, flag) in text
    assert "Peak learning rate" in text


def test_flags_and_yaml_give_the_same_config(tmp_path: Path):
    arguments = ["--dataset", "d", "--epochs", "7", "--optimizer.name", "adam", "--augment.no-flip"]
    config = parse(TrainConfig, arguments, "landmark train")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert parse(TrainConfig, ["--config", str(path)], "landmark train") == config
    changed = parse(TrainConfig, [f"--config={path}", "--epochs", "9"], "landmark train")
    assert changed == dataclasses.replace(config, epochs=9)


PREPARE = ["--output", "o"]


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["--folders.path", "photos"], "folders"),
        (["--gldv2.path", "g", "--gldv2.attribution"], "gldv2"),
        (["--dataset.path", "d", "--images", "9"], "dataset"),
        (["--source", "synthetic"], "synthetic"),
        (["--source", "synthetic", "--synthetic.classes", "3"], "synthetic"),
        (["--verify"], None),
    ],
)
def test_the_source_is_inferred_from_its_options(arguments, source):
    config = parse(PrepareConfig, PREPARE + arguments, "landmark prepare")
    assert config.source == source
    assert parse_yaml(PrepareConfig, to_yaml(config), "x.yaml") == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no source is set; add --folders.path, --gldv2.path or --dataset.path, or --source synthetic"),
        (["--synthetic.classes", "3"], "synthetic.classes is set; add --source synthetic"),
        (["--folders.path", "p", "--gldv2.path", "g"], "folders.path and gldv2.path belong to different sources"),
        (["--source", "synthetic", "--folders.path", "p"], "folders.path is set, but the source is synthetic"),
        (
            ["--source", "gldv2", "--gldv2.path", "g", "--synthetic.tail", "1"],
            "synthetic.tail is set, but the source is gldv2",
        ),
        (["--folders.groups", "groups.csv"], "folders.path is missing"),
        (["--gldv2.tars", "3"], "gldv2.path is missing"),
        (["--source", "dataset"], "dataset.path is missing"),
        (
            ["--dataset.path", "d", "--split.val", "0.3"],
            "split.val is set, but the images of a packed dataset keep their",
        ),
    ],
)
def test_an_ambiguous_source_or_unrelated_option_is_a_one_line_error(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        parse(PrepareConfig, PREPARE + arguments, "landmark prepare")
    assert "\n" not in str(error.value)


def test_decoders_are_a_number_or_a_range():
    assert [(config.min_decoders, config.max_decoders) for config in map(decoders, (3, "2", "1:8"))] == [
        (3, 3),
        (2, 2),
        (1, 8),
    ]
    for value in (0, "0:2", "8:1", "1:", "many"):
        with pytest.raises(ValueError, match=f"loader.decoders is {value}; expected a number of 1 or more"):
            decoders(value)


def decoders(value: int | str) -> LoaderConfig:
    return LoaderConfig(decoders=value)
