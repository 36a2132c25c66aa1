"""Checkpoints: a directory with the weights, the state to go on from, and what the model is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from landmark.config import Recipe, SubsetConfig, UserError, from_mapping, load_yaml, parse_yaml, to_mapping, to_yaml
from landmark.data.dataset import PackedDataset
from landmark.models import build_model
from landmark.storage import Location, NotFound, locate

FILES = ("model.safetensors", "state.pt", "config.yaml", "meta.json")


@dataclass(kw_only=True, frozen=True)
class CheckpointMeta:
    """What a checkpoint's model is, enough to use it without its training run."""

    backbone: str
    """Name in the model registry."""
    classes: list[str]
    """Class names in the order of the logits."""
    image_size: int
    """Width and height of the input, pixels."""
    mean: tuple[float, float, float]
    """Mean per channel that inputs in 0..1 are normalised with."""
    std: tuple[float, float, float]
    """Standard deviation per channel."""
    dataset: str
    """URI of the packed dataset it was trained on."""
    epoch: int
    """Epochs trained."""
    metrics: dict[str, float]
    """Metrics of that epoch."""
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    """Which of the dataset's images it was trained on."""
    subset_seed: int = 0
    """Seed of the subset's random choices."""


def write_checkpoint(
    directory: Path, model: nn.Module, state: Mapping[str, Any], meta: CheckpointMeta, recipe: Recipe
) -> None:
    """Write a checkpoint into an existing directory."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, directory / "model.safetensors")
    torch.save(dict(state), directory / "state.pt")
    (directory / "config.yaml").write_text(to_yaml(recipe))
    (directory / "meta.json").write_text(json.dumps(to_mapping(meta), indent=1) + "\n")


def read_state(directory: Path) -> dict[str, Any]:
    """Read the state to go on from."""
    return torch.load(directory / "state.pt", weights_only=True, map_location="cpu")


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Read the model's tensors."""
    return safetensors.torch.load_file(directory / "model.safetensors")


def read_recipe(directory: Path) -> Recipe:
    """Read the recipe of the run that wrote a checkpoint."""
    return load_yaml(Recipe, directory / "config.yaml")


def read_meta(checkpoint: Location) -> CheckpointMeta:
    """Read what a checkpoint's model is."""
    try:
        values = json.loads((checkpoint / "meta.json").read_text())
    except NotFound:
        raise UserError(
            f"{checkpoint}: no meta.json, so it is no checkpoint; give a run, a study or a checkpoint"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{checkpoint}/meta.json: not JSON ({error}); use another checkpoint") from None
    return from_mapping(CheckpointMeta, values, f"{checkpoint}/meta.json")


def load_model(checkpoint: Location) -> tuple[nn.Module, CheckpointMeta]:
    """Load a checkpoint's model, on the CPU and in evaluation mode."""
    meta = read_meta(checkpoint)
    recipe = parse_yaml(Recipe, (checkpoint / "config.yaml").read_text(), f"{checkpoint}/config.yaml")
    config = from_mapping(type(recipe.model), {**to_mapping(recipe.model), "weights": None}, str(checkpoint))
    model = build_model(config, classes=len(meta.classes), image_size=meta.image_size)
    try:
        model.load_state_dict(safetensors.torch.load((checkpoint / "model.safetensors").read_bytes()))
    except (RuntimeError, safetensors.SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{checkpoint}/model.safetensors: does not fit {meta.backbone} ({first})") from None
    return model.eval(), meta


def resolve_checkpoint(uri: str) -> Location:
    """Return the checkpoint that a URI names: itself, a run's best or a study's best."""
    location = locate(uri)
    if (location / "meta.json").exists():
        return location
    for name, key in (("run.json", "best_checkpoint"), ("study.json", "best")):
        try:
            values = json.loads((location / name).read_text())
        except NotFound:
            continue
        found = values[key]["checkpoint"] if isinstance(values[key], dict) else values[key]
        if not found:
            raise UserError(f"{location / name}: names no checkpoint; did any epoch end?")
        return locate(found) if "://" in found or found.startswith("/") else location / found
    state = "holds no meta.json, run.json or study.json" if location.exists() else "does not exist"
    raise UserError(f"{uri}: {state}; give the folder of a run, a study or a checkpoint")


def check_classes(checkpoint: Location, meta: CheckpointMeta, dataset: PackedDataset) -> None:
    """Raise UserError unless the checkpoint's classes are the dataset's."""
    if len(meta.classes) != dataset.num_classes:
        raise UserError(
            f"{checkpoint}: its model knows {len(meta.classes)} classes, but {dataset.location} has "
            f"{dataset.num_classes}; evaluate it on the dataset it was trained on ({meta.dataset})"
        )
    for index, (ours, theirs) in enumerate(zip(meta.classes, dataset.class_names, strict=True)):
        if ours != theirs:
            raise UserError(
                f"{checkpoint}: its class {index} is {ours!r}, but {theirs!r} in {dataset.location}; "
                f"evaluate it on the dataset it was trained on ({meta.dataset})"
            )


class CheckpointStore:
    """Keeps a run's last and best checkpoints under `<run>/checkpoints`, named in its index.json."""

    def __init__(self, run: Location, monitor: str, mode: str) -> None:
        self.run = run
        self.root = run / "checkpoints"
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.index: dict[str, Any] = {"last": None, "best": None, "metrics": {}}
        if (self.root / "index.json").exists():
            self.index = json.loads((self.root / "index.json").read_text())

    def save(self, directory: Path, epoch: int, metrics: Mapping[str, float]) -> None:
        """Store a checkpoint directory; the index changes when it is whole, then others are deleted."""
        name = f"epoch-{epoch:04d}"
        for file in FILES:
            (self.root / name / file).upload(directory / file)
        value = metrics[self.monitor]
        best = self.index["metrics"].get(self.monitor)
        if best is None or self.sign * value > self.sign * best:
            self.index |= {"best": name, "metrics": dict(metrics)}
        self.index["last"] = name
        (self.root / "index.json").write_text(json.dumps(self.index, indent=1) + "\n")
        for other in self.root.names():
            if other not in ("index.json", self.index["last"], self.index["best"]):
                (self.root / other).delete()

    def path(self, which: str) -> str | None:
        """Return the last or best checkpoint's path below the run, or None."""
        name = self.index[which]
        return f"checkpoints/{name}" if name else None

    def fetch_last(self, directory: Path) -> bool:
        """Copy the last checkpoint into a directory; False where there is none."""
        name = self.index["last"]
        if name is None:
            return False
        for file in FILES:
            (self.root / name / file).download(directory / file)
        return True
