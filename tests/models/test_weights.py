"""Start weights: what fits is loaded, another head is replaced, anything else is named."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from landmark.config import ModelConfig, UserError
from landmark.models import build_model

FAMILIES = ["resnet18", "squeezenet1_0", "mobilenet_v3_small", "googlenet", "timm/resnet10t"]


def build(name: str, classes: int, weights: Path | str | None = None) -> torch.nn.Module:
    config = ModelConfig(backbone=name, weights=None if weights is None else str(weights))
    return build_model(config, classes=classes, image_size=64)


def differing(one: torch.nn.Module, other: torch.nn.Module) -> set[str]:
    theirs = other.state_dict()
    return {
        name
        for name, tensor in one.state_dict().items()
        if tensor.shape != theirs[name].shape or not torch.equal(tensor, theirs[name])
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
def test_state_dicts_are_read_however_they_were_saved(wrap, tmp_path: Path):
    source = build("resnet18", 4)
    path = tmp_path / "weights.pt"
    torch.save(wrap({f"module.{name}": tensor for name, tensor in source.state_dict().items()}), path)
    assert not differing(build("resnet18", 4, path), source)


def test_what_does_not_fit_is_named(tmp_path: Path):
    state = build("resnet18", 4).state_dict()
    state["conv1.weight"] = torch.zeros(3)
    state["extra"] = torch.zeros(1)
    del state["layer1.0.conv1.weight"]
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        build("resnet18", 4, path)
    for part in ("1 missing (layer1.0.conv1.weight)", "1 unknown (extra)", "1 of another shape (conv1.weight)"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(build("mobilenet_v3_small", 4).state_dict(), path)
    with pytest.raises(UserError, match=r"does not fit resnet18.*give weights of resnet18"):
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


def test_missing_files_and_unknown_names(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        build("resnet18", 4, tmp_path / "none.pt")
    with pytest.raises(UserError, match="did you mean 'IMAGENET1K_V1'"):
        build("resnet18", 4, "IMAGENET1K_V7")
    with pytest.raises(UserError, match="deck_mlp is not torchvision's"):
        build("deck_mlp", 4, "DEFAULT")
