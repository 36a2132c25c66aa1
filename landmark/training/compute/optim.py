"""Optimizers and learning-rate schedules."""

import math
from typing import Any

import torch
from torch import nn

from landmark.config import OptimizerConfig, ScheduleConfig
from landmark.evaluation.ranking import score
from landmark.models import rate_scales, stages
from landmark.training.compute.muon import Muon

ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1e-4


def build_optimizer(model: nn.Module, config: OptimizerConfig, batch_size: int) -> torch.optim.Optimizer:
    """Return an optimizer for the model's trainable parameters. One-dimensional weights have no weight decay.

    A group's `lr_scale` is the factor of its stage's learning rate by layer_decay. Schedule applies it. rmsprop has
    Keras' defaults (rho 0.9, epsilon 1e-7, Tieleman & Hinton 2012), adam and adamw torch's. All except rmsprop use one
    fused kernel, which updates ResNet-50's weights in 26 ms instead of 240 ms or more on two cores. muon updates the matrices and
    kernels between the first layer and the classifier, adamw the others.
    """
    scales = rate_scales(model, config.layer_decay)
    inner = inner_matrices(model) if config.name == "muon" else set()
    members: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault((scales[name], parameter.ndim > 1, name in inner), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0, "lr_scale": scale, "muon": muon}
        for (scale, decayed, muon), parameters in members.items()
    ]
    lr = config.peak_lr(batch_size)
    if config.name == "muon":
        return Muon(groups, lr)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    if config.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, alpha=0.9, eps=1e-7)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def inner_matrices(model: nn.Module) -> set[str]:
    """Return the names of the matrices and kernels between a model's first layer and its classifier.

    Vectors in the shape of matrices, such as tokens and depthwise kernels, are no matrices, nor are tables of position biases.
    """
    parts = stages(model)
    weights = dict(model.named_parameters())
    names = [name for part in parts[:-1] for name in part.parameters if _is_matrix(name, weights[name])]
    return set(names[1:])


def _is_matrix(name: str, weight: nn.Parameter) -> bool:
    return weight.ndim in (2, 4) and weight.shape[0] > 1 and weight.shape[1] > 1 and not name.endswith("bias_table")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state with each tensor in its weight's memory layout, which fused kernels require.

    Settings such as weight decay are not loaded, because population-based training changes them between two
    checkpoints.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def lr_factor(config: ScheduleConfig, step: float, steps_per_epoch: int, epochs: int) -> float:
    """Return the factor of the peak learning rate at a step, counted from 0.

    one_cycle rises from 1/25 and falls to 1/10,000 by half cosines (Smith & Topin 2018). cosine falls to 0 (Loshchilov
    & Hutter 2017). constant, step and cosine start with a linear warm-up.
    """
    total = steps_per_epoch * epochs
    done = step / max(total - 1, 1)
    if config.name == "one_cycle":
        if done < config.peak_at:
            return _half_cosine(ONE_CYCLE_START, 1.0, done / config.peak_at)
        return _half_cosine(1.0, ONE_CYCLE_END, (done - config.peak_at) / (1 - config.peak_at))
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "cosine":
        return _half_cosine(1.0, 0.0, (step - warmup) / max(total - warmup, 1))
    if config.name == "step":
        return config.factor ** (step // steps_per_epoch // config.step_epochs)
    return 1.0


class Schedule:
    """Sets the optimizer's learning rate before every step, and after every epoch for plateau."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: ScheduleConfig,
        *,
        optimizer_config: OptimizerConfig,
        steps_per_epoch: int,
        epochs: int,
        mode: str,
    ) -> None:
        self.optimizer = optimizer
        self.config = config
        self.optimizer_config = optimizer_config
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.mode = mode
        self.reduction = 1.0
        self.best = -math.inf
        self.stale_epochs = 0

    def set_lr(self, step: float, batch_size: int) -> float:
        """Set the learning rate for a step and return that of the classifier's stage.

        step: counted from 0 over the run, in steps of full-size epochs. batch_size: images of the step over all
        workers.
        """
        lr = (
            self.optimizer_config.peak_lr(batch_size)
            * self.reduction
            * lr_factor(self.config, step, self.steps_per_epoch, self.epochs)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def epoch_end(self, metric: float) -> None:
        """Record an epoch's monitored metric. plateau lowers the learning rate after `patience` stale epochs."""
        if self.config.name != "plateau":
            return
        value = score(metric, self.mode)
        if value > self.best:
            self.best, self.stale_epochs = value, 0
            return
        self.stale_epochs += 1
        if self.stale_epochs > self.config.patience:
            self.reduction *= self.config.factor
            self.stale_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed run."""
        return {"reduction": self.reduction, "best": self.best, "stale_epochs": self.stale_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state."""
        self.reduction, self.best, self.stale_epochs = state["reduction"], state["best"], state["stale_epochs"]


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
