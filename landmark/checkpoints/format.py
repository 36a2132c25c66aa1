"""Checkpoint format: a directory with the weights, the training state and the model's metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from landmark.config import (
    CROP_PCT,
    Recipe,
    SubsetConfig,
    UserError,
    from_mapping,
    load_yaml,
    mask_credentials,
    parse_yaml,
    to_mapping,
    to_stored_yaml,
    with_recorded_subset,
)
from landmark.data.dataset import PackedDataset
from landmark.models import build_model, with_temperature
from landmark.storage import Location, NotFound, locate

MODEL_FILES = ("model.safetensors", "config.yaml", "meta.json")
"""Files that are required to use the model."""
FILES = (*MODEL_FILES, "state.pt")
"""Files that are required to resume the run."""
CHECKPOINTS = "checkpoints"
"""Name of the folder with a run's checkpoints."""
INDEX = f"{CHECKPOINTS}/index.json"
"""File with the names of a run's checkpoints."""
CHECKSUMS = "checksums.json"
"""SHA-256 of each file, written last: a checkpoint that contains it is complete."""


@dataclass(kw_only=True, frozen=True)
class CheckpointMeta:
    """Metadata of a checkpoint's model, sufficient to use the model without its training run."""

    backbone: str
    """Name in the model registry."""
    classes: list[str]
    """Class names in the order of the logits."""
    image_size: int
    """Width and height of the input, pixels."""
    mean: tuple[float, float, float]
    """Mean per channel for the normalization of inputs in 0..1."""
    std: tuple[float, float, float]
    """Standard deviation per channel."""
    dataset: str
    """URI of the packed dataset that the model was trained on."""
    epoch: int
    """Number of finished epochs."""
    metrics: dict[str, float]
    """Metrics of the last finished epoch."""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    """Subset of the dataset that the model was trained on."""
    subset_seed: int = 0
    """Random seed of the subset."""
    dataset_id: str = ""
    """Content ID of the dataset, independent of its location: PackedDataset.content_id. Empty in old checkpoints."""
    temperature: float = 1.0
    """Factor by which the logits are divided, so that the probabilities of the validation split are calibrated. 1 in old
    checkpoints."""
    crop_pct: float = CROP_PCT
    """Side of the center crop, as a fraction of the image's short side. The default in old checkpoints."""


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are missing or corrupt."""


@dataclass(kw_only=True, frozen=True, eq=False)
class Snapshot:
    """A checkpoint in memory, independent of the tensors that training modifies."""

    name: str
    """Name of its folder, such as epoch-0003, or epoch-0004-image-000007680 within the fourth epoch."""
    weights: dict[str, torch.Tensor]
    """Tensors of the model, on the CPU."""
    state: dict[str, Any]
    """Other data that the run needs to resume: tensors on the CPU and plain values."""
    meta: CheckpointMeta
    recipe: Recipe

    def write(self, directory: Path) -> None:
        """Write the checkpoint into an existing directory."""
        safetensors.torch.save_file(self.weights, directory / "model.safetensors")
        torch.save(self.state, directory / "state.pt")
        (directory / "config.yaml").write_text(to_stored_yaml(self.recipe))
        (directory / "meta.json").write_text(mask_credentials(json.dumps(to_mapping(self.meta), indent=1)) + "\n")
        sums = {name: _sha256(directory / name) for name in FILES}
        (directory / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")


def copied(value: Any) -> Any:
    """Return a deep copy of nested dicts, lists and tuples with all tensors on the CPU. Arrays become tensors.

    GPU tensors are copied into pinned memory, with a single synchronization at the end.
    """
    found = _copied(value)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.device.type != "cuda":
            return value.detach().to("cpu", copy=True).contiguous()
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def check_files(directory: Path) -> None:
    """Raise DamagedCheckpoint unless a checkpoint's files match their checksums."""
    try:
        sums = json.loads((directory / CHECKSUMS).read_text())
    except (OSError, json.JSONDecodeError):
        raise DamagedCheckpoint(f"{CHECKSUMS} is missing or not valid JSON") from None
    for name in FILES:
        if not (directory / name).exists() or _sha256(directory / name) != sums.get(name):
            raise DamagedCheckpoint(f"{name} is missing or does not match its checksum")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_state(directory: Path) -> dict[str, Any]:
    """Read the training state without running code in it.

    Its tensors are memory-mapped views of the file. Copy the tensors that you keep.
    """
    return torch.load(directory / "state.pt", weights_only=True, map_location="cpu", mmap=True)


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Read the model's tensors as views of the file, as in `read_state`."""
    return safetensors.torch.load_file(directory / "model.safetensors")


def read_recipe(directory: Path) -> Recipe:
    """Read the recipe of the run that wrote a checkpoint."""
    return load_yaml(Recipe, directory / "config.yaml")


def read_meta(checkpoint: Location) -> CheckpointMeta:
    """Read a checkpoint's metadata. Raises UserError if it is missing or not valid JSON."""
    try:
        values = json.loads((checkpoint / "meta.json").read_text())
    except NotFound:
        raise UserError(
            f"{checkpoint}: contains no meta.json, so it is not a checkpoint; pass a run, a study or a checkpoint"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{checkpoint}/meta.json: not valid JSON ({error}); use another checkpoint") from None
    return from_mapping(CheckpointMeta, with_recorded_subset(values), f"{checkpoint}/meta.json")


def weights_digest(checkpoint: Location) -> str:
    """Return a hexadecimal digest that identifies a checkpoint's model."""
    try:
        data = (checkpoint / CHECKSUMS).read_bytes()
    except NotFound:  # an exported model
        data = (checkpoint / "model.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()


def load_model(checkpoint: Location, *, calibrated: bool = True) -> tuple[nn.Module, CheckpointMeta]:
    """Load a checkpoint's model, on the CPU and in evaluation mode, by default with calibrated logits."""
    meta = read_meta(checkpoint)
    recipe = parse_yaml(Recipe, (checkpoint / "config.yaml").read_text(), f"{checkpoint}/config.yaml")
    config = from_mapping(type(recipe.model), {**to_mapping(recipe.model), "weights": None}, str(checkpoint))
    model = build_model(config, classes=len(meta.classes), image_size=meta.image_size)
    try:
        model.load_state_dict(safetensors.torch.load((checkpoint / "model.safetensors").read_bytes()))
    except (RuntimeError, safetensors.SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{checkpoint}/model.safetensors: does not match {meta.backbone} ({first})") from None
    return with_temperature(model.eval(), meta.temperature if calibrated else 1.0), meta


def resolve_checkpoint(uri: str) -> Location:
    """Return the checkpoint that a URI refers to: itself, or the best one of a run or a study."""
    location = locate(uri)
    if (location / "meta.json").exists():
        return location
    for name, key in (("run.json", "best_checkpoint"), ("study.json", "best"), (INDEX, "best")):
        try:
            values = json.loads((location / name).read_text())
        except NotFound:
            continue
        found = values[key]["checkpoint"] if isinstance(values[key], dict) else values[key]
        if not found:
            raise UserError(f"{location / name}: lists no checkpoint; check that at least one epoch finished")
        if name == INDEX:  # of an unfinished run
            return location / CHECKPOINTS / found
        return locate(found) if "://" in found or found.startswith("/") else location / found
    state = "contains no meta.json, run.json or study.json" if location.exists() else "does not exist"
    raise UserError(f"{uri}: {state}; pass the folder of a run, a study or a checkpoint")


def check_classes(checkpoint: Location, meta: CheckpointMeta, dataset: PackedDataset) -> None:
    """Raise UserError unless checkpoint and dataset have the same classes."""
    if len(meta.classes) != dataset.num_classes:
        raise UserError(
            f"{checkpoint}: its model has {len(meta.classes)} classes, but {dataset.location} has "
            f"{dataset.num_classes}; evaluate it on the dataset it was trained on ({meta.dataset})"
        )
    for index, (ours, theirs) in enumerate(zip(meta.classes, dataset.class_names, strict=True)):
        if ours != theirs:
            raise UserError(
                f"{checkpoint}: class {index} is {ours!r}, but {theirs!r} in {dataset.location}; "
                f"evaluate it on the dataset it was trained on ({meta.dataset})"
            )
