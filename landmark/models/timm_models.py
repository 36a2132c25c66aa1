"""timm's models: names, properties and construction. timm is an optional extra."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from landmark.config import UserError
from landmark.config.extras import install_command

TIMM_PREFIX = "timm/"


def is_timm(backbone: str) -> bool:
    """Return whether a model is one of timm's."""
    return backbone.startswith(TIMM_PREFIX)


def timm_names(*, weights: bool) -> list[str]:
    """Return the names of timm's models with the prefix, and with `weights` those that end in the name of their weights.

    Raises UserError if timm is not installed.
    """
    timm = timm_package()
    names = dict.fromkeys([*timm.list_models(), *(timm.list_pretrained() if weights else ())])
    return [TIMM_PREFIX + name for name in names]


def timm_config(backbone: str) -> Any:
    """Return timm's PretrainedCfg of a model, or None."""
    return timm_package().get_pretrained_cfg(backbone.removeprefix(TIMM_PREFIX))


def create_timm(
    backbone: str,
    *,
    image_size: int,
    classes: int | None = None,
    drop_path: float | None = None,
    pretrained: bool = False,
    overlay: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a timm model for an image size (pixels).

    classes: None means those of its pretrained weights. drop_path: rate of stochastic depth. pretrained: load weights as
    timm does, from the source in its PretrainedCfg, in which `overlay` replaces values. Raises TypeError for a drop_path
    that the model does not have.
    """
    options: dict[str, Any] = {"num_classes": classes, "drop_path_rate": drop_path}
    if overlay is not None:
        options["pretrained_cfg_overlay"] = dict(overlay)
    name, create = backbone.removeprefix(TIMM_PREFIX), timm_package().create_model
    try:
        return create(name, pretrained=pretrained, img_size=image_size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        # A model without position embeddings accepts any size and has no img_size argument.
        return create(name, pretrained=pretrained, **options)


@cache
def timm_package() -> Any:
    """Return the module timm. Raises UserError if it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError(f"timm's models require the package timm; {install_command('timm')}") from None
    return timm
