"""Stages of a network, from the input to the classifier: what freezing and layer-wise learning rates go by."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from landmark.models.weights import AUXILIARY_HEADS

TWIN = "_dist"
"""How the name of a second head, of timm's distilled networks, continues the first one's."""


@dataclass(kw_only=True, frozen=True)
class Stage:
    """One stage of a network."""

    name: str
    """Names of its modules."""
    parameters: tuple[str, ...]
    """Names of its parameters; each of the network's is in one stage."""


def stages(model: nn.Module) -> list[Stage]:
    """Return a network's stages in the order of its modules: the first sees the image, the last is the classifier.

    A stage is a child of the network. The one child that holds most of the layers (`features`, `blocks`, `encoder` …) is
    opened, again and again, unless it has siblings of its kind (`layer1` to `layer4`); so is what holds the classifier.
    Norms belong to the stage before them, and auxiliary heads to the classifier.
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
    """Return the path of a network's classifier: the last layer that holds a matrix, auxiliary heads left out."""
    named = [(name, module) for name, module in model.named_modules() if not _is_auxiliary(name)]
    heads = [name for name, module in named if any(p.ndim > 1 for p in module.parameters(recurse=False))]
    return heads[-1] if heads else ""


def rate_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return what each parameter's learning rate is multiplied with: layer_decay to the number of stages after its own."""
    parts = stages(model)
    return {
        parameter: layer_decay ** (len(parts) - 1 - number)
        for number, stage in enumerate(parts)
        for parameter in stage.parameters
    }


def _units(module: nn.Module, path: str, head: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the path and parameters of each child that is not opened, in order; an opened module's own go to its first."""
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
    """Return the name of the child with more than half of the tensors and no sibling of its kind, where there is one."""
    for name, child in children:
        alone = sum(type(other) is type(child) for _, other in children) == 1
        if alone and 2 * _tensors(child) > sum(_tensors(other) for _, other in children):
            return name
    return None


def _tensors(module: nn.Module) -> int:
    return sum(1 for _ in module.parameters())


def _is_auxiliary(path: str) -> bool:
    return path.partition(".")[0] in AUXILIARY_HEADS
