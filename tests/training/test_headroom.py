"""`landmark train --headroom`: the rates with and without the loader, and the bottleneck."""

import json

import pytest

from landmark.cli import main
from landmark.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from landmark.data.loading.bottleneck import DATA_WAIT, STAGES, bottleneck, stage_metric
from landmark.training.headroom import headroom, headroom_text
from tests.support.packed import write_packed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    return write_packed(tmp_path_factory.mktemp("packed"), {"train": [64, 32], "val": [16], "test": [8]}, size=1000)


def test_a_small_model_on_large_images_has_headroom(dataset):
    config = TrainConfig(
        dataset=dataset.uri,
        model=ModelConfig(backbone="reference_mlp"),
        loader=LoaderConfig(image_size=32, batch_size=8, decode_threads=1),
        augment=AugmentConfig(),
    )
    found = headroom(config, round_s=1.0)
    assert found["headroom"] > 1.2
    assert found["images_per_s_without_loader"] == pytest.approx(found["headroom"] * found["images_per_s"])
    assert found[DATA_WAIT] == pytest.approx(sum(found[stage_metric(stage)] for stage in STAGES))
    assert found["bottleneck"] == bottleneck(found)
    slow, fast = (
        {**found, DATA_WAIT: wait, "bottleneck": name} for wait, name in ((0.4, "decoding"), (0.01, "compute"))
    )
    text = headroom_text(config, slow)
    assert "reference_mlp on one CPU, 8 images of 32 x 32 per step" in text
    assert "bottleneck: decoding; add --cache" in text
    assert "bottleneck: compute; a faster loader does not help" in headroom_text(config, fast)


def test_the_command_prints_json_and_stores_nothing(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("landmark.training.headroom.headroom.__defaults__", (0.2,))
    command = ["train", dataset.uri, "--recipe", "modern", "--model", "reference_mlp", "--img-size", "32"]
    assert main([*command, "--batch-size", "8", "-o", str(tmp_path), "--headroom", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["headroom"] > 0
    assert not list(tmp_path.iterdir())


def test_several_workers_are_refused(dataset, tmp_path, capsys):
    command = ["train", dataset.uri, "--recipe", "modern", "--batch-size", "8", "-o", str(tmp_path), "--headroom"]
    assert main([*command, "--num-workers", "2"]) == 2
    assert "headroom measures one worker in this process" in capsys.readouterr().err
    with pytest.raises(ValueError, match="use one of them"):
        TrainConfig(dataset=dataset.uri, dry_run=True, headroom=True)
