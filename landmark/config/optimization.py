"""Configs of one step: optimizer, schedule, loss, precision, averaged weights."""

import math
from dataclasses import dataclass
from typing import Literal

from landmark.config.errors import require

OPTIMIZER_RATES = {"sgd": 0.05, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001}
"""Learning rate of each optimizer where the config names none."""


@dataclass(kw_only=True, frozen=True)
class OptimizerConfig:
    """How weights are updated."""

    name: Literal["sgd", "rmsprop", "adam", "adamw"] = "sgd"
    """Optimizer."""
    lr: float | None = None
    """Peak learning rate; empty: 0.05 for sgd, 0.001 for the others."""
    base_batch_size: int | None = None
    """Batch that lr is meant for: the rate is multiplied with loader.batch_size / base_batch_size for sgd, with its square
    root for the others (Goyal et al. 2017; Malladi et al. 2022); empty: lr as it stands."""
    momentum: float = 0.9
    """Momentum of sgd (Nesterov when above 0); the others ignore it."""
    weight_decay: float = 0.0
    """Weight decay: L2 for sgd, rmsprop and adam, decoupled for adamw. Norms and biases are exempt."""
    layer_decay: float = 1.0
    """What a stage's learning rate is multiplied with for every stage between it and the classifier (Howard & Ruder 2018)."""
    clip_norm: float | None = None
    """Largest norm of the gradient; empty: not clipped."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does. stop: end the run with an error, its checkpoints from before; skip:
    leave the weights as they are and go on, counted as skipped_steps."""

    def __post_init__(self) -> None:
        require(self.lr is None or self.lr > 0, f"optimizer.lr is {self.lr}; expected above 0")
        require(0 <= self.momentum < 1, f"optimizer.momentum is {self.momentum}; expected 0 to below 1")
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}; expected 0 or more")
        require(
            self.base_batch_size is None or self.base_batch_size >= 1,
            f"optimizer.base_batch_size is {self.base_batch_size}; expected 1 or more",
        )
        require(0 < self.layer_decay <= 1, f"optimizer.layer_decay is {self.layer_decay}; expected above 0, up to 1")
        require(
            self.clip_norm is None or self.clip_norm > 0, f"optimizer.clip_norm is {self.clip_norm}; expected above 0"
        )

    def peak_lr(self, batch_size: int) -> float:
        """Return the learning rate at the schedule's peak for a batch of all workers together."""
        lr = OPTIMIZER_RATES[self.name] if self.lr is None else self.lr
        if self.base_batch_size is None:
            return lr
        factor = batch_size / self.base_batch_size
        return lr * (factor if self.name == "sgd" else math.sqrt(factor))


@dataclass(kw_only=True, frozen=True)
class ScheduleConfig:
    """How the learning rate goes over the run; all but plateau change at every step."""

    name: Literal["constant", "step", "cosine", "one_cycle", "plateau"] = "one_cycle"
    """Schedule. plateau lowers the rate when the monitored metric stops improving."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0, for constant, step and cosine."""
    step_epochs: int = 10
    """step: epochs between two reductions."""
    factor: float = 0.1
    """step, plateau: what the rate is multiplied with at a reduction."""
    patience: int = 3
    """plateau: epochs without improvement before a reduction."""
    peak_at: float = 0.3
    """one_cycle: share of the run at which the rate peaks."""

    def __post_init__(self) -> None:
        require(self.warmup_epochs >= 0, f"schedule.warmup_epochs is {self.warmup_epochs}; expected 0 or more")
        require(self.step_epochs >= 1, f"schedule.step_epochs is {self.step_epochs}; expected 1 or more")
        require(0 < self.factor < 1, f"schedule.factor is {self.factor}; expected between 0 and 1")
        require(self.patience >= 0, f"schedule.patience is {self.patience}; expected 0 or more")
        require(0 < self.peak_at < 1, f"schedule.peak_at is {self.peak_at}; expected between 0 and 1")


@dataclass(kw_only=True, frozen=True)
class LossConfig:
    """What is minimised: cross entropy."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    """How much an image of a rare class counts: with 1, 1/sqrt or 1/number of the class's training images, the mean over all images 1."""

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, f"loss.label_smoothing is {self.label_smoothing}; expected 0 to below 1")


@dataclass(kw_only=True, frozen=True)
class ComputeConfig:
    """How a step is computed; none of it changes what is learned but by rounding."""

    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Autocast. auto: bf16 on GPUs that have it and on CPUs with bf16 instructions, fp16 on older GPUs with tensor cores (V100,
    T4), else off; fp16 scales the loss. off: fp32, on GPUs without TF32."""
    channels_last: bool = True
    """Keep channels last in memory, as convolutions are fastest."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps after."""
    accumulate: int = 1
    """Parts in which a worker computes its batch one after the other, to save memory; gradients are exchanged once a step."""
    deterministic: bool = False
    """Use deterministic algorithms alone: the same run twice has the same weights, bit for bit, on GPUs too, but slower."""
    gradient_checkpointing: bool = False
    """Compute the activations of each block of the network again in the backward pass, which saves most of their memory and
    costs about a third more computation."""
    sync_batchnorm: bool = False
    """Compute the statistics of batch norms over the images of all workers (SyncBatchNorm): for few images per GPU. Needs
    several workers with a GPU each, and workers.backend ddp."""
    ddp_comm_hook: Literal["none", "bf16_compress"] = "none"
    """How workers exchange gradients. bf16_compress: in bf16, half the bytes. Needs several workers and workers.backend ddp."""

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, f"compute.accumulate is {self.accumulate}; expected 1 or more")
        require(
            not (self.gradient_checkpointing and self.compile),
            "compute.gradient_checkpointing and compute.compile are both true, but torch.compile chooses by itself what it computes "
            "again; leave one of the two out",
        )

    def exchanges(self) -> str | None:
        """Return the name of an option that is set and needs several workers of the backend ddp; None where there is none."""
        if self.sync_batchnorm:
            return "sync_batchnorm"
        return None if self.ddp_comm_hook == "none" else "ddp_comm_hook"


@dataclass(kw_only=True, frozen=True)
class EmaConfig:
    """A moving average of the weights, which is what is validated and kept as the model."""

    decay: float | None = None
    """Share of the average that a step keeps; empty: no average."""
    warmup: bool = True
    """Begin with a shorter memory: the decay is at most (1 + step) / (10 + step)."""

    def __post_init__(self) -> None:
        require(self.decay is None or 0 < self.decay < 1, f"ema.decay is {self.decay}; expected between 0 and 1")
