"""`landmark models`: lists models with their parameter counts, or the stages of one model; stores pretrained weights."""

from typing import Any

from landmark.config import FetchConfig, ModelConfig, ModelsConfig, UserError
from landmark.models.pretrained import MIRROR, fetch_pretrained
from landmark.models.registry import count_parameters, model_info, model_names, stages_of
from landmark.storage import locate

REFERENCE_MODELS = ("reference_mlp", "reference_cnn_max", "reference_cnn_avg", "resnet50", "resnet101", "inception_v3")


def models(config: ModelsConfig) -> list[dict[str, Any]]:
    """Print the table; returns its rows."""
    if config.stages:
        return print_stages(config)
    every = config.all or config.timm or config.name is not None
    names = model_names(timm=config.timm, weights=config.name is not None) if every else list(REFERENCE_MODELS)
    names = [name for name in names if (config.name or "") in name]
    if not names:
        raise UserError(f"no model name contains {config.name!r}; `landmark models --all` lists all models")
    print(f"{'name':34}{'source':13}{'input':>7}{'total':>14}{'trainable':>14}{'frozen':>10}")
    rows = []
    for name in names:
        info = model_info(name)
        size = config.image_size or info.image_size
        counts = count_parameters(ModelConfig(backbone=name), classes=config.classes, image_size=size)
        print(f"{name:34}{info.source:13}{size:>7}{counts.total:>14,}{counts.trainable:>14,}{counts.frozen:>10,}")
        rows.append({"name": name, "source": info.source, "image_size": size, "parameters": counts.total})
    return rows


def fetch(config: FetchConfig) -> str:
    """Store a model's pretrained weights in a folder or bucket, and print how to use them. Returns the file's URI."""
    mirror = locate(config.to)
    place = fetch_pretrained(config.name, mirror)
    print(f"weights: {place}")
    print(
        f"next: {MIRROR}={mirror.uri} landmark train DATASET --recipe finetune --model {config.name} --weights pretrained"
    )
    return place.uri


def print_stages(config: ModelsConfig) -> list[dict[str, Any]]:
    """Print a model's stages from the input to the classifier; returns them."""
    if config.name is None:
        raise UserError("--stages needs the name of a model, for example: landmark models resnet50 --stages")
    size = config.image_size or model_info(config.name).image_size
    listed = stages_of(ModelConfig(backbone=config.name), classes=config.classes, image_size=size)
    print(f"{'stage':>5}{'total':>14}  modules")
    for number, (stage, total) in enumerate(listed, 1):
        print(f"{number:>5}{total:>14,}  {stage.name}{'  (the classifier)' if number == len(listed) else ''}")
    return [
        {"stage": number, "modules": stage.name, "parameters": total} for number, (stage, total) in enumerate(listed, 1)
    ]
