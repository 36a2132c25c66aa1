"""Tests pretrained weights by name: a hub, its cache, a mirror, other image sizes, families of timm, no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.data import resolve_data_config

from landmark.config import ModelConfig, UserError
from landmark.models import FeatureModel, build_model, check_images, model_info, model_names, with_hub_model
from landmark.models.registry import skeleton, stages_of
from tests.support.hub import Hub
from tests.support.packed import write_packed
from tests.support.seaweed import Seaweed

VIT = "timm/test_vit.r160_in1k"
FAMILIES = [
    "timm/vit_small_patch14_dinov2.lvd142m",
    "timm/vit_small_patch14_reg4_dinov2.lvd142m",
    "timm/vit_small_patch16_dinov3.lvd1689m",
    "timm/vit_base_patch16_siglip_224.v2_webli",
    "timm/vit_base_patch32_clip_224.openai",
    "timm/convnextv2_atto.fcmae_ft_in1k",
]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights of a small ViT of timm, at its own image size."""
    torch.manual_seed(0)
    return timm.create_model("test_vit").state_dict()


def landmark(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    values = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-m", "landmark", *arguments]
    return subprocess.run(command, env=values, capture_output=True, text=True, timeout=120, check=False)


def test_weights_are_fetched_from_the_hub_once_and_then_from_its_cache(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    fetch = ["models", "fetch", VIT, "--to", str(tmp_path / "mirror")]
    with Hub({"timm/test_vit.r160_in1k/model.safetensors": safetensors.torch.save(state)}) as hub:
        done = landmark(fetch, tmp_path, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert hub.downloads == ["timm/test_vit.r160_in1k/model.safetensors"]
    stored = tmp_path / "mirror" / f"{VIT}.safetensors"
    found = safetensors.torch.load_file(stored)
    assert all(torch.equal(found[name], state[name]) for name in state)
    stored.unlink()
    again = landmark(fetch, tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and stored.exists()


def test_without_a_network_one_line_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    done = landmark(["models", "fetch", VIT, "--to", str(tmp_path / "mirror")], tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert f"run `landmark models fetch {VIT} --to FOLDER`, then set LANDMARK_WEIGHTS" in line


@pytest.mark.parametrize("size", [160, 96])
def test_a_mirror_has_the_weights_of_every_image_size(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (tmp_path / "timm").mkdir()
    file = tmp_path / f"{VIT}.safetensors"
    safetensors.torch.save_file(state, file)
    monkeypatch.setenv("LANDMARK_WEIGHTS", str(tmp_path))
    ours = build_model(ModelConfig(backbone=VIT, weights="pretrained"), classes=5, image_size=size).eval()
    overlay = {"file": str(file)}
    theirs = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=size
    )
    images = torch.randn(2, 3, size, size)
    with torch.no_grad(), FeatureModel(ours, VIT) as features:
        torch.testing.assert_close(features(images), theirs.eval()(images))
    # The same file by its path, for another size than its own.
    named = build_model(ModelConfig(backbone=VIT, weights=str(file)), classes=5, image_size=size).eval()
    with torch.no_grad(), FeatureModel(named, VIT) as features:
        torch.testing.assert_close(features(images), theirs(images))


def test_a_mirror_in_a_bucket(
    s3: Seaweed, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from landmark.models.pretrained import fetch_pretrained
    from landmark.storage import locate

    bucket = s3.uri("weights")
    network = build_model(ModelConfig(backbone="shufflenet_v2_x0_5"), classes=1000, image_size=64)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "shufflenet_v2_x0_5.safetensors")
    monkeypatch.setenv("LANDMARK_WEIGHTS", str(tmp_path))
    fetch_pretrained("shufflenet_v2_x0_5", locate(bucket))
    monkeypatch.setenv("LANDMARK_WEIGHTS", bucket)
    found = build_model(ModelConfig(backbone="shufflenet_v2_x0_5", weights="pretrained"), classes=3, image_size=64)
    assert torch.equal(found.conv1[0].weight, network.conv1[0].weight) and found.fc.out_features == 3


@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_family_needs_no_further_settings(backbone: str) -> None:
    assert backbone in model_names(timm=True)
    theirs = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(backbone.removeprefix("timm/")).to_dict())
    info = model_info(backbone)
    assert (info.mean, info.std, info.image_size) == (theirs["mean"], theirs["std"], theirs["input_size"][-1])
    config = ModelConfig(backbone=backbone)
    check_images(config, classes=5, image_size=224)
    with FeatureModel(skeleton(config, 5, 224).eval(), backbone) as features:
        assert features.layer.out_features == 5
    assert len(stages_of(config, classes=5, image_size=224)) > 10 or "convnext" in backbone


def test_an_image_size_that_is_no_multiple_of_the_patch() -> None:
    with pytest.raises(UserError, match="loader.image_size is 100: .* does not accept images of this size"):
        build_model(ModelConfig(backbone=VIT), classes=5, image_size=100)


def test_drop_path_is_that_of_the_model_or_an_error() -> None:
    model = build_model(ModelConfig(backbone="timm/test_vit", drop_path=0.4), classes=5, image_size=96)
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.4)
    torchvision = build_model(ModelConfig(backbone="efficientnet_b0", drop_path=0.4), classes=5, image_size=64)
    assert max(m.p for m in torchvision.modules() if type(m).__name__ == "StochasticDepth") > 0.3
    for backbone in ("resnet18", "timm/vgg11"):
        with pytest.raises(UserError, match=f"{backbone} has no stochastic depth; leave it unset"):
            build_model(ModelConfig(backbone=backbone, drop_path=0.1), classes=5, image_size=64)


def test_weights_of_another_model_and_models_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm").mkdir()
    other = timm.create_model("test_efficientnet").state_dict()
    safetensors.torch.save_file(other, tmp_path / f"{VIT}.safetensors")
    monkeypatch.setenv("LANDMARK_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="does not match timm/test_vit"):
        build_model(ModelConfig(backbone=VIT, weights="pretrained"), classes=5, image_size=96)
    for backbone, reason in ((VIT, "does not match timm/test_vit"), ("resnet18", "fetch the weights again")):
        (tmp_path / f"{backbone}.safetensors").write_bytes(b"damaged" * 100)
        with pytest.raises(UserError, match=rf"{backbone}\.safetensors.*{reason}") as error:
            build_model(ModelConfig(backbone=backbone, weights="pretrained"), classes=5, image_size=96)
        assert "\n" not in str(error.value)
    for backbone in ("timm/vit_small_patch16_18x2_224", "reference_mlp"):
        with pytest.raises(UserError, match=f"there are none for {backbone}; choose another model.backbone"):
            build_model(ModelConfig(backbone=backbone, weights="pretrained"), classes=5, image_size=224)
    with pytest.raises(UserError, match="in timm's format, but model.backbone is resnet18"):
        build_model(ModelConfig(backbone="resnet18", weights="hf_hub:a/b"), classes=5, image_size=64)


def test_a_model_by_the_name_of_its_repository(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The run records timm's name, so that its model needs no hub later."""
    values = {
        "architecture": "test_vit",
        "num_classes": 1000,
        "pretrained_cfg": {"tag": "r160_in1k", "num_classes": 1000},
    }
    files = {
        "me/mine/config.json": json.dumps(values).encode(),
        "me/mine/model.safetensors": safetensors.torch.save(state),
    }
    data = write_packed(tmp_path / "dataset", {"train": [24], "val": [8], "test": [8]}, classes=3)
    train = ["train", data.location.uri, "--recipe", "probe", "--img-size", "32", "--output", str(tmp_path)]
    model = ["--model", "hf_hub:me/mine", "--weights", "pretrained"]
    with Hub(files) as hub:
        done = landmark([*train, *model], tmp_path, HF_ENDPOINT=hub.url)
        missing = landmark([*train, "--model", "hf_hub:me/other", "--name", "no"], tmp_path, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "train" / "config.yaml").read_text()
    assert "backbone: timm/test_vit.r160_in1k" in config and "weights: hf_hub:me/mine" in config
    tested = landmark(["evaluate", str(tmp_path / "train")], tmp_path, HF_HUB_OFFLINE="1")
    assert tested.returncode == 0, tested.stderr
    (line,) = missing.stderr.strip().splitlines()
    assert missing.returncode == 1 and "hf_hub:me/other: its config.json cannot be read" in line


def test_a_repository_with_a_model_that_this_timm_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", lambda name: ({"tag": None}, "vit_of_the_future", {}))
    with pytest.raises(UserError, match="is no model of this timm .vit_of_the_future.; choose another model"):
        with_hub_model(ModelConfig(backbone="hf_hub:a/b"))
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", lambda name: ({}, "test_vit", {"depth": 3}))
    with pytest.raises(UserError, match="has options that landmark does not support"):
        with_hub_model(ModelConfig(backbone="hf_hub:a/b"))
    other = {"mean": [0.5, 0.4, 0.3]}
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", lambda name: (other, "test_vit", {}))
    with pytest.raises(UserError, match="normalized with mean .0.5, 0.4, 0.3., those of timm/test_vit with"):
        with_hub_model(ModelConfig(backbone="hf_hub:a/b"))
