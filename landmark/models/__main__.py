"""`python -m landmark.models`: a table of networks and their numbers of parameters."""

from dataclasses import dataclass

from landmark.cli import end, run_verb
from landmark.config import ModelConfig, UserError
from landmark.models.registry import count_parameters, model_info, model_names, stages_of

DECK_MODELS = ("deck_mlp", "deck_cnn_max", "deck_cnn_avg", "resnet50", "resnet101", "inception_v3")


@dataclass(kw_only=True, frozen=True)
class ModelsConfig:
    """List networks with their input size and numbers of parameters."""

    classes: int = 100
    """Number of classes of the classifier."""
    image_size: int | None = None
    """Width and height of the input, pixels; empty: each network's own."""
    all: bool = False
    """List every network, not the deck's alone."""
    timm: bool = False
    """List timm's networks too."""
    name: str = ""
    """List the networks whose name contains this text."""
    stages: str = ""
    """Instead: list the stages of this one network, as model.freeze_stages and optimizer.layer_decay count them."""


def models(config: ModelsConfig) -> None:
    """Print the table."""
    if config.stages:
        print_stages(config)
        return
    names = model_names(timm=config.timm) if config.all or config.timm or config.name else list(DECK_MODELS)
    names = [name for name in names if config.name in name]
    if not names:
        raise UserError(f"no network's name contains {config.name!r}; `python -m landmark.models --all` lists all")
    print(f"{'name':34}{'source':13}{'input':>7}{'total':>14}{'trainable':>14}{'frozen':>10}")
    for name in names:
        info = model_info(name)
        size = config.image_size or info.image_size
        counts = count_parameters(ModelConfig(backbone=name), classes=config.classes, image_size=size)
        print(f"{name:34}{info.source:13}{size:>7}{counts.total:>14,}{counts.trainable:>14,}{counts.frozen:>10,}")


def print_stages(config: ModelsConfig) -> None:
    """Print a network's stages from the input to the classifier."""
    size = config.image_size or model_info(config.stages).image_size
    listed = stages_of(ModelConfig(backbone=config.stages), classes=config.classes, image_size=size)
    print(f"{'stage':>5}{'total':>14}  modules")
    for number, (stage, total) in enumerate(listed, 1):
        print(f"{number:>5}{total:>14,}  {stage.name}{'  (the classifier)' if number == len(listed) else ''}")


if __name__ == "__main__":
    end(run_verb(ModelsConfig, models))
