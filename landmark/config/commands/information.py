"""Configs of the commands that show information: models, recipes, spaces, status and doctor."""

from dataclasses import dataclass


@dataclass(kw_only=True, frozen=True)
class ModelsConfig:
    """List models with their input size and numbers of parameters, or the stages of one model."""

    name: str | None = None
    """Text that the names of the listed models contain. [default: the models of the reference study]"""
    all: bool = False
    """List all models of torchvision."""
    timm: bool = False
    """Also list the models of timm (extra timm)."""
    classes: int = 100
    """Number of classes of the classifier."""
    image_size: int | None = None
    """Width and height of the input, pixels. [default: the model's]"""
    stages: bool = False
    """List the stages of one model. The options model.freeze_stages and optimizer.layer_decay count these stages."""


@dataclass(kw_only=True, frozen=True)
class FetchConfig:
    """Download the pretrained weights of a model into a folder or bucket, for machines without a network."""

    name: str
    """Name of the model, as in model.backbone."""
    to: str
    """Folder or URI in which the weights are stored. Set LANDMARK_WEIGHTS to it on the other machines."""


@dataclass(kw_only=True, frozen=True)
class RecipesConfig:
    """List the recipes, or print one as YAML."""

    name: str | None = None
    """Name of a recipe, or a YAML file. [default: list all]"""


@dataclass(kw_only=True, frozen=True)
class SpacesConfig:
    """List the search spaces, or print one as YAML."""

    name: str | None = None
    """Name of a search space, or a YAML file. [default: list all]"""


@dataclass(kw_only=True, frozen=True)
class ShowConfig:
    """Show the progress of a study or a run."""

    run: str
    """Folder or URI of a study or a run, running or finished."""


@dataclass(kw_only=True, frozen=True)
class DoctorConfig:
    """Check this machine: Python, packages, GPUs, Ray, memory, disk and object storage."""

    bucket: str | None = None
    """Folder or URI to check by writing to it and reading from it. [default: none]"""
