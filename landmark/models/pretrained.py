"""Pretrained weights by name: from a mirror, from the caches of torchvision and Hugging Face, or by a download."""

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision

from landmark.config import ModelConfig, UserError
from landmark.models.timm_models import TIMM_PREFIX, create_timm, is_timm, timm_config, timm_names, timm_package
from landmark.storage import Location, locate

PRETRAINED = "pretrained"
"""Value of model.weights that means the model's own pretrained weights."""
HUB_PREFIX = "hf_hub:"
"""Prefix of weights in a repository of the Hugging Face hub, in timm's format."""
MIRROR = "LANDMARK_WEIGHTS"
"""Environment variable with the folder or URI in which `landmark models fetch` stored weights."""


def read_pretrained(backbone: str, image_size: int) -> dict[str, torch.Tensor]:
    """Return a model's pretrained weights by the names of its tensors, for an image size (pixels).

    They are read from the mirror in LANDMARK_WEIGHTS, or from the caches of torchvision (TORCH_HOME) and Hugging Face
    (HF_HOME), or downloaded. Position embeddings are resized as timm does. Raises UserError if there are none.
    """
    mirror = os.environ.get(MIRROR)
    if mirror and (place := mirrored(locate(mirror), backbone)).exists():
        return read_timm_file(backbone, image_size, place) if is_timm(backbone) else _read_mirrored(place)
    try:
        if is_timm(backbone):
            return dict(create_timm(backbone, image_size=image_size, pretrained=True).state_dict())
        if backbone not in torchvision.models.list_models(module=torchvision.models):
            raise _no_weights(backbone)
        weights = torchvision.models.get_model_weights(backbone).DEFAULT
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the hub, its HTTP client and torch raise different kinds for the same fault
        reason = _first_line(error)
        if "No pretrained weights exist" in reason:
            raise _no_weights(backbone) from None
        elsewhere = f"; {MIRROR} is {mirror}, which does not have them" if mirror else ""
        raise UserError(
            f"model.weights pretrained: the weights of {backbone} are not on this machine and cannot be downloaded "
            f"({reason}{elsewhere}); on a machine with a network, run `landmark models fetch {backbone} --to FOLDER`, then set "
            f"{MIRROR} to that folder or URI"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _no_weights(backbone: str) -> UserError:
    return UserError(
        f"model.weights is {PRETRAINED}, but there are none for {backbone}; choose another model.backbone "
        f"(`landmark models {backbone.partition('.')[0]} --timm` lists timm's names with weights), or pass a file"
    )


def read_hub(backbone: str, image_size: int, weights: str) -> dict[str, torch.Tensor]:
    """Return the weights of a timm model from a repository of the Hugging Face hub: hf_hub:OWNER/NAME."""
    if not is_timm(backbone):
        raise UserError(
            f"model.weights is {weights}, in timm's format, but model.backbone is {backbone}; set model.backbone to the timm "
            "model of that repository"
        )
    overlay: Mapping[str, Any] = {"source": "hf-hub", "hf_hub_id": weights.removeprefix(HUB_PREFIX)}
    try:
        return dict(create_timm(backbone, image_size=image_size, pretrained=True, overlay=overlay).state_dict())
    except (UserError, MemoryError):
        raise
    except Exception as error:  # as in read_pretrained
        reason = _first_line(error)
        raise UserError(
            f"model.weights {weights}: cannot be loaded into {backbone} ({reason}); check the name, or download the file on a "
            "machine with a network and pass it"
        ) from None


def with_hub_model(config: ModelConfig) -> ModelConfig:
    """Return a config whose backbone hf_hub:OWNER/NAME is replaced by timm's name of that model.

    The weights `pretrained` become those of the repository. Other configs are returned unchanged. Reads config.json of the
    repository, in timm's format. Raises UserError if it cannot be read, or if timm does not have the model.
    """
    if not config.backbone.startswith(HUB_PREFIX):
        return config
    repository = config.backbone.removeprefix(HUB_PREFIX)
    timm = timm_package()
    try:
        found, architecture, options = timm.models.load_model_config_from_hf(repository)
    except Exception as error:  # as in read_pretrained
        reason = _first_line(error)
        raise UserError(
            f"model.backbone {config.backbone}: its config.json cannot be read ({reason}); check the name, or set model.backbone to "
            "the timm model and model.weights to a file"
        ) from None
    tagged = f"{TIMM_PREFIX}{architecture}.{found.get('tag')}"
    name = tagged if tagged in timm_names(weights=True) else f"{TIMM_PREFIX}{architecture}"
    if options or name not in timm_names(weights=True):
        reason = (
            "has options that landmark does not support" if options else f"is no model of this timm ({architecture})"
        )
        raise UserError(f"model.backbone {config.backbone}: {reason}; choose another model")
    known = timm_config(name)
    for key in ("mean", "std"):
        if known is not None and key in found and tuple(found[key]) != tuple(getattr(known, key)):
            raise UserError(
                f"model.backbone {config.backbone}: its images are normalized with {key} {tuple(found[key])}, those of {name} with "
                f"{tuple(getattr(known, key))}; choose another model"
            )
    weights = config.backbone if config.weights == PRETRAINED else config.weights
    return dataclasses.replace(config, backbone=name, weights=weights)


def read_timm_file(backbone: str, image_size: int, place: Location) -> dict[str, torch.Tensor]:
    """Return the weights of a timm model from a file in the format of timm or of the model's authors.

    timm's own loader renames tensors, and resizes position embeddings to the image size. Raises UserError if the file does
    not match the model.
    """
    with tempfile.TemporaryDirectory(prefix="landmark-weights-") as folder:
        local = place.local_path()
        if local is None:
            local = Path(folder) / place.uri.rpartition("/")[2]
            local.write_bytes(place.read_bytes())
        overlay: Mapping[str, Any] = {"file": str(local), "hf_hub_id": None, "url": ""}
        try:
            return dict(create_timm(backbone, image_size=image_size, pretrained=True, overlay=overlay).state_dict())
        except MemoryError:
            raise
        except Exception as error:  # the loaders of each format and model raise their own kinds
            reason = _first_line(error)
            raise UserError(
                f"model.weights {place}: does not match {backbone} ({reason}); use weights of {backbone}"
            ) from None


def fetch_pretrained(backbone: str, target: Location) -> Location:
    """Store a model's pretrained weights at its native image size in a mirror. Returns the file's location."""
    from landmark.models.registry import model_info

    place = mirrored(target, backbone)
    state = read_pretrained(backbone, model_info(backbone).image_size)
    place.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()}))
    return place


def mirrored(mirror: Location, backbone: str) -> Location:
    """Return the location of a model's weights in a mirror."""
    return mirror / f"{backbone}.safetensors"


def _read_mirrored(place: Location) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(place.read_bytes())
    except safetensors.SafetensorError as error:
        raise UserError(f"{place}: not a readable safetensors file ({error}); fetch the weights again") from None
