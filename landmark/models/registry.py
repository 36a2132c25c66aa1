"""Model registry: builds a model by name with a classifier of the requested size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn

from landmark.config import ModelConfig, UserError, nearest
from landmark.models import reference
from landmark.models.heads import EmbeddingHead, GeM, NeckNorm, graft
from landmark.models.lora import RANK, add_lora
from landmark.models.stages import Stage, classifier_path, stages
from landmark.models.timm_models import TIMM_PREFIX, create_timm, timm_config, timm_names
from landmark.models.weights import load_weights

REFERENCE: dict[str, Callable[[int, int], nn.Module]] = {
    "reference_mlp": reference.feed_forward,
    "reference_cnn_max": reference.max_pooling_cnn,
    "reference_cnn_avg": reference.average_pooling_cnn,
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTERED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
INCEPTION_SIZE = 299


@dataclass(kw_only=True, frozen=True)
class ModelInfo:
    """Properties of a model that are known before it is built."""

    name: str
    """Name in the registry."""
    source: str
    """reference, torchvision or timm."""
    image_size: int
    """Width and height of the model's native input, pixels."""
    mean: tuple[float, float, float]
    """Mean per channel for the normalization of inputs in 0..1."""
    std: tuple[float, float, float]
    """Standard deviation per channel."""


@dataclass(kw_only=True, frozen=True)
class ParameterCounts:
    """Parameter counts of a model."""

    total: int
    """All parameters."""
    trainable: int
    """Parameters that training changes."""

    @property
    def frozen(self) -> int:
        """Parameters that training does not change."""
        return self.total - self.trainable


def model_names(*, timm: bool = False, weights: bool = True) -> list[str]:
    """Return the names of all models. timm: include timm's models; raises UserError if timm is not installed.

    weights: also return names of timm's models that end in the name of their pretrained weights.
    """
    names = [*REFERENCE, *torchvision.models.list_models(module=torchvision.models)]
    return names + timm_names(weights=weights) if timm else names


def check_name(name: str) -> None:
    """Raise UserError with the nearest name if no model has this name."""
    names = model_names(timm=name.startswith(TIMM_PREFIX))
    if name not in names:
        raise UserError(f"model.backbone is {name!r}; {nearest(name, names)} (`landmark models --all` lists all)")


def model_info(name: str) -> ModelInfo:
    """Return a model's properties. Raises UserError for an unknown name."""
    check_name(name)
    if name in REFERENCE:
        return ModelInfo(name=name, source="reference", image_size=299, mean=CENTERED[0], std=CENTERED[1])
    if name.startswith(TIMM_PREFIX):
        cfg = timm_config(name)
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
    """Build a model that maps normalized floats (n, 3, image_size, image_size) to logits (n, classes).

    In training mode, Inception v3 and GoogLeNet return torchvision's tuple with auxiliary logits. Raises UserError for
    an unknown name, an image size that the model does not accept, weights that do not match, or more stages to freeze
    than there are before the classifier.
    """
    check_name(config.backbone)
    _check_size(config, classes, image_size)
    model = _construct(config, classes, image_size)
    if config.weights is not None:
        replaced = next((name for name, module in model.named_modules() if isinstance(module, EmbeddingHead)), None)
        head = head_tensors(config, classes, image_size)
        load_weights(model, config.backbone, config.weights, head, replaced, image_size=image_size)
    _freeze(model, config, classes, image_size)
    return model


def build_skeleton(config: ModelConfig, *, classes: int, image_size: int) -> nn.Module:
    """Build a model on torch's meta device: it has shapes and frozen flags, but neither weights nor output values."""
    model = skeleton(config, classes, image_size)
    _freeze(model, config, classes, image_size)
    make_trainable(model, config, classes=classes, image_size=image_size)
    return model


def make_trainable(model: nn.Module, config: ModelConfig, *, classes: int, image_size: int) -> None:
    """Add the weights that only training has to a model: those of LoRA. Trained models do not have them, see `plain_state`."""
    if config.tuning == "lora":
        frozen = {name for stage in stages(model)[: config.freeze_stages] for name in stage.parameters}
        add_lora(model, config.lora_rank or RANK, head_tensors(config, classes, image_size) | frozen)


def head_tensors(config: ModelConfig, classes: int, image_size: int) -> set[str]:
    """Return the names of the tensors whose shape depends on the number of classes, including auxiliary heads.

    For embedding models, also those of the neck and of a pooling layer that replaces the model's own.
    """
    model = skeleton(config, classes, image_size)
    ours = model.state_dict()
    if config.is_embedding():
        parts = [name for name, module in model.named_modules() if isinstance(module, EmbeddingHead | GeM)]
        return {name for name in ours if name.startswith(tuple(f"{part}." for part in parts))}
    other = skeleton(config, classes + 1, image_size).state_dict()
    return {name for name, tensor in ours.items() if tensor.shape != other[name].shape}


def count_parameters(config: ModelConfig, *, classes: int, image_size: int) -> ParameterCounts:
    """Count a model's parameters without allocating them."""
    model = build_skeleton(config, classes=classes, image_size=image_size)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCounts(
        total=sum(size for size, _ in sizes), trainable=sum(size for size, trainable in sizes if trainable)
    )


def _freeze(model: nn.Module, config: ModelConfig, classes: int, image_size: int) -> None:
    """Freeze the backbone, its matrices and kernels, or the first stages, as configured."""
    frozen: set[str] = set()
    if config.freeze_backbone or config.tuning != "all":
        # Layer scales have the shape (channels, 1, 1), and are vectors, too.
        vectors = {name for name, weight in model.named_parameters() if weight.numel() == max(weight.shape, default=1)}
        kept = vectors if config.tuning == "norm_bias" else set()
        frozen = {name for name, _ in model.named_parameters()} - head_tensors(config, classes, image_size) - kept
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
    """Return a model's stages with their parameter counts, without allocating the model."""
    check_name(config.backbone)
    model = skeleton(config, classes, image_size)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return [(stage, sum(sizes[name] for name in stage.parameters)) for stage in stages(model)]


def train_mode(model: nn.Module, *, freeze_norm_stats: bool = False) -> None:
    """Put a model into training mode, except batch norms whose statistics must not change.

    These are those with frozen weights, and with freeze_norm_stats all of the backbone. A neck's batch norm is trained.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            weights = list(module.parameters())
            frozen = weights and not any(weight.requires_grad for weight in weights)
            if frozen or (freeze_norm_stats and not isinstance(module, NeckNorm)):
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
    if name in REFERENCE:
        return REFERENCE[name](classes, image_size)
    if name.startswith(TIMM_PREFIX):
        return _construct_timm(config, classes, image_size)
    options = _options(name, image_size)
    if config.drop_path is not None:
        options["stochastic_depth_prob"] = config.drop_path
    if config.is_embedding() and "aux_logits" in options:
        options["aux_logits"] = False  # an auxiliary head would be a second classifier of another type
    try:
        return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    except TypeError:
        raise _no_drop_path(config) from None


def skeleton(config: ModelConfig, classes: int, image_size: int) -> nn.Module:
    """Construct a model without storage. torchvision's RegNets compute with tensors and need storage at first."""
    try:
        with torch.device("meta"):
            return _construct(config, classes, image_size)
    except NotImplementedError:
        return _construct(config, classes, image_size).to("meta")


def _options(name: str, image_size: int) -> dict[str, Any]:
    if name == "inception_v3":
        # The auxiliary head convolves a 5x5 map, which exists only for images of at least the model's native size.
        return {"init_weights": True, "aux_logits": image_size >= INCEPTION_SIZE}
    if name == "googlenet":
        return {"init_weights": True, "aux_logits": True}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    return {}


def _construct_timm(config: ModelConfig, classes: int, image_size: int) -> nn.Module:
    try:
        return create_timm(config.backbone, image_size=image_size, classes=classes, drop_path=config.drop_path)
    except TypeError:
        if config.drop_path is None:
            raise
        raise _no_drop_path(config) from None


def _no_drop_path(config: ModelConfig) -> UserError:
    return UserError(
        f"model.drop_path is {config.drop_path}, but {config.backbone} has no stochastic depth; leave it unset"
    )


def _set_dropout(model: nn.Module, config: ModelConfig) -> None:
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise UserError(
            f"model.dropout is {config.dropout}, but {config.backbone} has no dropout layer; leave it unset"
        )
    layers[-1].p = float(config.dropout or 0.0)


def check_images(config: ModelConfig, *, classes: int, image_size: int, start_size: int | None = None) -> None:
    """Raise UserError if the model cannot be built as configured or does not accept images of these sizes.

    start_size: size of the first epochs' images with progressive resizing; None means image_size. The check uses a
    model without storage and ignores the weights.
    """
    check_name(config.backbone)
    _refuse_misfit(config, classes, image_size, [image_size] if start_size is None else [image_size, start_size])


def check_start_size(config: ModelConfig, classes: int, image_size: int, start_size: int) -> None:
    """Raise UserError if a model built for `image_size` does not accept images of `start_size`."""
    _refuse_misfit(config, classes, image_size, [start_size])


def needs_two_images(config: ModelConfig, image_size: int, size: int) -> bool:
    """Return whether a model built for `image_size` has batch norms over 1 x 1 maps, which need two images to train."""
    train_mode(model := build_skeleton(config, classes=2, image_size=image_size))
    try:
        with torch.no_grad():
            model(torch.empty(1, 3, size, size, device="meta"))
    except ValueError as error:
        return "more than 1 value per channel" in str(error)
    return False


def _check_size(config: ModelConfig, classes: int, image_size: int) -> None:
    # Nearly all models accept images larger than their native size. Checking those would add 0.1 s to every start. Those of
    # some transformers must be a multiple of the window (MaxViT).
    native = model_info(config.backbone).image_size
    if image_size < native or (image_size > native and "vit" in config.backbone):
        _refuse_misfit(config, classes, image_size, [image_size])


def _refuse_misfit(config: ModelConfig, classes: int, image_size: int, sizes: list[int]) -> None:
    """Run images of each size through a model without storage that is built for `image_size`."""
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
                f"resizing.start_size is {size}: {config.backbone} built for {image_size} pixels does not accept it ({reason}); "
                "choose another start_size, or leave it unset"
            ) from None
        raise UserError(
            f"loader.image_size is {size}: {config.backbone} does not accept images of this size ({reason}); "
            f"its native size is {model_info(config.backbone).image_size}"
        ) from None
