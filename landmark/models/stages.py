"""Stages of a model, from the input to the classifier, for freezing and layer-wise learning rates."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from landmark.models.weights import AUXILIARY_HEADS

TWIN = "_dist"
"""Suffix of the second head's name in timm's distilled models."""


@dataclass(kw_only=True, frozen=True)
class Stage:
    """One stage of a model."""

    name: str
    """Names of its modules."""
    parameters: tuple[str, ...]
    """Names of its parameters. Each parameter of the model belongs to exactly one stage."""


def stages(model: nn.Module) -> list[Stage]:
    """Return a model's stages in the order of its modules: the first receives the image, the last is the classifier.

    A stage is a child module of the model. A child that contains most of the layers, such as `features`, `blocks` or
    `encoder`, is expanded recursively, unless it has siblings of its type (`layer1` to `layer4`). The module that
    contains the classifier is expanded, too. Norms belong to the stage before them, and auxiliary heads to the
    classifier.
    """
    head = classifier_path(model)
    kept: list[tuple[list[str], list[str]]] = []
    auxiliary: list[str] = []
    shapes = dict(model.named_parameters())
    for name, parameters in _units(model, "", head):
        is_norm = all(shapes[parameter].ndim == 1 for parameter in parameters)
        if _is_auxiliary(name):
            auxiliary += parameters
        elif kept and (is_norm or name == f"{kept[-1][0][-1]}{TWIN}"):
            kept[-1][0].append(name)
            kept[-1][1].extend(parameters)
        else:
            kept.append(([name], list(parameters)))
    kept[-1][1].extend(auxiliary)
    return [Stage(name=" + ".join(names), parameters=tuple(parameters)) for names, parameters in kept]


def classifier_path(model: nn.Module) -> str:
    """Return the path of a model's classifier: the last layer that has a matrix, auxiliary heads excluded."""
    named = [(name, module) for name, module in model.named_modules() if not _is_auxiliary(name)]
    heads = [name for name, module in named if any(p.ndim > 1 for p in module.parameters(recurse=False))]
    return heads[-1] if heads else ""


def rate_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return each parameter's learning rate factor: layer_decay to the power of the number of later stages."""
    parts = stages(model)
    return {
        parameter: layer_decay ** (len(parts) - 1 - number)
        for number, stage in enumerate(parts)
        for parameter in stage.parameters
    }


def _units(module: nn.Module, path: str, head: str) -> Iterator[tuple[str, list[str]]]:
    """Yield path and parameters of each unexpanded child. Own parameters of expanded modules go to the first child."""
    own = [f"{path}{name}" for name, _ in module.named_parameters(recurse=False)]
    children = [(name, child) for name, child in module.named_children() if _tensors(child)]
    trunk = _trunk([(name, child) for name, child in children if not f"{head}.".startswith(f"{path}{name}.")])
    for name, child in children:
        full = f"{path}{name}"
        if (name == trunk or head.startswith(f"{full}.")) and any(_tensors(part) for part in child.children()):
            units = _units(child, f"{full}.", head)
        else:
            units = iter([(full, [f"{full}.{parameter}" for parameter, _ in child.named_parameters()])])
        for unit, parameters in units:
            yield unit, [*own, *parameters]
            own = []
    if own:
        yield path.rstrip(".") or type(module).__name__, own


def _trunk(children: list[tuple[str, nn.Module]]) -> str | None:
    """Return the name of the child with more than half of the tensors and no sibling of its type, or None."""
    for name, child in children:
        alone = sum(type(other) is type(child) for _, other in children) == 1
        if alone and 2 * _tensors(child) > sum(_tensors(other) for _, other in children):
            return name
    return None


def _tensors(module: nn.Module) -> int:
    return sum(1 for _ in module.parameters())


def _is_auxiliary(path: str) -> bool:
    return path.partition(".")[0] in AUXILIARY_HEADS
