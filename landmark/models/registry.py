"""The registry: a network by its name, with a classifier of the size asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torchvision
from torch import nn

from landmark.config import ModelConfig, UserError, nearest
from landmark.config.extras import install_command
from landmark.models import deck
from landmark.models.heads import EmbeddingHead, GeM, graft
from landmark.models.stages import Stage, classifier_path, stages
from landmark.models.weights import load_weights

DECK: dict[str, Callable[[int, int], nn.Module]] = {
    "deck_mlp": deck.feed_forward,
    "deck_cnn_max": deck.max_pooling_cnn,
    "deck_cnn_avg": deck.average_pooling_cnn,
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TIMM_PREFIX = "timm/"
INCEPTION_SIZE = 299


@dataclass(kw_only=True, frozen=True)
class ModelInfo:
    """What is known of a network before it is built."""

    name: str
    """Name in the registry."""
    source: str
    """deck, torchvision or timm."""
    image_size: int
    """Width and height of its own input, pixels."""
    mean: tuple[float, float, float]
    """Mean per channel that inputs in 0..1 are normalised with."""
    std: tuple[float, float, float]
    """Standard deviation per channel."""


@dataclass(kw_only=True, frozen=True)
class ParameterCounts:
    """Numbers of a network's parameters."""

    total: int
    """All of them."""
    trainable: int
    """Those that training changes."""

    @property
    def frozen(self) -> int:
        """Those that it does not."""
        return self.total - self.trainable


def model_names(*, timm: bool = False) -> list[str]:
    """Return the names of all networks, timm's too where asked for and installed."""
    names = [*DECK, *torchvision.models.list_models(module=torchvision.models)]
    return names + [TIMM_PREFIX + name for name in _timm().list_models()] if timm else names


def check_name(name: str) -> None:
    """Raise UserError with the nearest name unless there is a network of this name."""
    names = model_names(timm=name.startswith(TIMM_PREFIX))
    if name not in names:
        raise UserError(f"model.backbone is {name!r}; {nearest(name, names)} (`landmark models --all` lists all)")


def model_info(name: str) -> ModelInfo:
    """Return what is known of a network; raises UserError for an unknown name."""
    check_name(name)
    if name in DECK:
        return ModelInfo(name=name, source="deck", image_size=299, mean=CENTRED[0], std=CENTRED[1])
    if name.startswith(TIMM_PREFIX):
        cfg = _timm().get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
        size = cfg.input_size[-1] if cfg else 224
        mean, std = (cfg.mean, cfg.std) if cfg else IMAGENET
        return ModelInfo(name=name, source="timm", image_size=size, mean=tuple(mean), std=tuple(std))
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return ModelInfo(
        name=name,
        source="torchvision",
        image_size=int(transforms.crop_size[0]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def build_model(config: ModelConfig, *, classes: int, image_size: int) -> nn.Module:
    """Build a network: (n, 3, image_size, image_size) normalised floats to logits (n, classes).

    While training, Inception v3 and GoogLeNet return torchvision's tuple with auxiliary logits. Raises
    UserError for an unknown name, an image size that the network cannot take, weights that do not fit, or more stages
    to freeze than there are before the classifier.
    """
    check_name(config.backbone)
    _check_size(config, classes, image_size)
    model = _construct(config, classes, image_size)
    if config.weights is not None:
        replaced = next((name for name, module in model.named_modules() if isinstance(module, EmbeddingHead)), None)
        load_weights(model, config.backbone, config.weights, head_tensors(config, classes, image_size), replaced)
    _freeze(model, config, classes, image_size)
    return model


def build_skeleton(config: ModelConfig, *, classes: int, image_size: int) -> nn.Module:
    """Build a network on torch's meta device: shapes, and what is frozen, but no weights; what it computes has shapes alone, too."""
    model = skeleton(config, classes, image_size)
    _freeze(model, config, classes, image_size)
    return model


def head_tensors(config: ModelConfig, classes: int, image_size: int) -> set[str]:
    """Return the names of the tensors whose shape follows the number of classes: the head's, auxiliary ones too.

    Of an embedding model the neck's as well, and those of a pooling that is not the network's own.
    """
    model = skeleton(config, classes, image_size)
    ours = model.state_dict()
    if config.is_embedding():
        parts = [name for name, module in model.named_modules() if isinstance(module, EmbeddingHead | GeM)]
        return {name for name in ours if name.startswith(tuple(f"{part}." for part in parts))}
    other = skeleton(config, classes + 1, image_size).state_dict()
    return {name for name, tensor in ours.items() if tensor.shape != other[name].shape}


def count_parameters(config: ModelConfig, *, classes: int, image_size: int) -> ParameterCounts:
    """Count a network's parameters without making them."""
    model = build_skeleton(config, classes=classes, image_size=image_size)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCounts(
        total=sum(size for size, _ in sizes), trainable=sum(size for size, trainable in sizes if trainable)
    )


def _freeze(model: nn.Module, config: ModelConfig, classes: int, image_size: int) -> None:
    """Freeze the backbone, or the stages from the input on, that the config says."""
    frozen: set[str] = set()
    if config.freeze_backbone:
        frozen = {name for name, _ in model.named_parameters()} - head_tensors(config, classes, image_size)
    if config.freeze_stages:
        parts = stages(model)
        if config.freeze_stages >= len(parts):
            raise UserError(
                f"model.freeze_stages is {config.freeze_stages}, but {config.backbone} has {len(parts) - 1} stages before its "
                f"classifier; `landmark models {config.backbone} --stages` lists them"
            )
        frozen |= {name for stage in parts[: config.freeze_stages] for name in stage.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)


def stages_of(config: ModelConfig, *, classes: int, image_size: int) -> list[tuple[Stage, int]]:
    """Return a network's stages with their numbers of parameters, without making it."""
    check_name(config.backbone)
    model = skeleton(config, classes, image_size)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return [(stage, sum(sizes[name] for name in stage.parameters)) for stage in stages(model)]


def train_mode(model: nn.Module) -> None:
    """Put a model into training mode, but for frozen batch norms: their statistics stay as they came."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()


def _construct(config: ModelConfig, classes: int, image_size: int) -> nn.Module:
    model = _network(config, 1 if config.is_embedding() else classes, image_size)
    if config.dropout is not None:
        _set_dropout(model, config)
    if config.is_embedding():
        graft(model, classifier_path(model), config, classes)
    return model


def _network(config: ModelConfig, classes: int, image_size: int) -> nn.Module:
    name = config.backbone
    if name in DECK:
        return DECK[name](classes, image_size)
    if name.startswith(TIMM_PREFIX):
        return _construct_timm(name.removeprefix(TIMM_PREFIX), classes, image_size)
    options = _options(name, image_size)
    if config.is_embedding() and "aux_logits" in options:
        options["aux_logits"] = False  # an auxiliary head would be a second classifier of another kind
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)


def skeleton(config: ModelConfig, classes: int, image_size: int) -> nn.Module:
    """Construct a network without storage; torchvision's RegNets compute with tensors and need some at first."""
    try:
        with torch.device("meta"):
            return _construct(config, classes, image_size)
    except NotImplementedError:
        return _construct(config, classes, image_size).to("meta")


def _options(name: str, image_size: int) -> dict[str, Any]:
    if name == "inception_v3":
        # Its auxiliary head convolves a 5x5 map, which no image below the network's own size leaves it.
        return {"init_weights": True, "aux_logits": image_size >= INCEPTION_SIZE}
    if name == "googlenet":
        return {"init_weights": True, "aux_logits": True}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    return {}


def _construct_timm(name: str, classes: int, image_size: int) -> nn.Module:
    timm = _timm()
    try:
        return timm.create_model(name, num_classes=classes, img_size=image_size)
    except TypeError:  # a network without position embeddings takes any size and no such argument
        return timm.create_model(name, num_classes=classes)


def _set_dropout(model: nn.Module, config: ModelConfig) -> None:
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise UserError(
            f"model.dropout is {config.dropout}, but {config.backbone} has no dropout layer; leave it empty"
        )
    layers[-1].p = float(config.dropout or 0.0)


def check_images(config: ModelConfig, *, classes: int, image_size: int, start_size: int | None = None) -> None:
    """Raise UserError unless the network can be built as the config says and takes images of these sizes.

    start_size: of the images that resizing begins with, None: as all. Takes a network without storage, so that nothing is
    computed; weights are not looked at.
    """
    check_name(config.backbone)
    _refuse_misfit(config, classes, image_size, [image_size] if start_size is None else [image_size, start_size])


def check_start_size(config: ModelConfig, classes: int, image_size: int, start_size: int) -> None:
    """Raise UserError unless a network built for `image_size` takes images of `start_size`, too, as resizing wants."""
    _refuse_misfit(config, classes, image_size, [start_size])


def needs_two_images(config: ModelConfig, image_size: int, size: int) -> bool:
    """Return whether a network built for `image_size` cannot be trained on one image of a size: a batch norm over 1 x 1 maps."""
    train_mode(model := build_skeleton(config, classes=2, image_size=image_size))
    try:
        with torch.no_grad():
            model(torch.empty(1, 3, size, size, device="meta"))
    except ValueError as error:
        return "more than 1 value per channel" in str(error)
    return False


def _check_size(config: ModelConfig, classes: int, image_size: int) -> None:
    # Images larger than its own a network takes nearly always: trying those would cost every start a tenth of a second.
    if image_size < model_info(config.backbone).image_size:
        _refuse_misfit(config, classes, image_size, [image_size])


def _refuse_misfit(config: ModelConfig, classes: int, image_size: int, sizes: list[int]) -> None:
    """Try images of each size on a network without storage that is built for `image_size`: tables do not tell the truth."""
    size = image_size
    try:
        train_mode(model := build_skeleton(config, classes=classes, image_size=image_size))
        with torch.no_grad():
            for size in sizes:
                model(torch.empty(2, 3, size, size, device="meta"))
    except (RuntimeError, ValueError, AssertionError, ZeroDivisionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if size != image_size:
            raise UserError(
                f"resizing.start_size is {size}: {config.backbone} built for {image_size} pixels cannot take it ({reason}); "
                "choose another start_size, or leave it empty"
            ) from None
        raise UserError(
            f"loader.image_size is {size}: {config.backbone} cannot take images of that size ({reason}); "
            f"its own size is {model_info(config.backbone).image_size}"
        ) from None


@cache
def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm's networks need the package timm; {install_command('timm')}") from None
    return timm
