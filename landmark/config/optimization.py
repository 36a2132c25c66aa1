"""Configs of a training step: optimizer, schedule, loss, precision, and moving average of the weights."""

import math
from dataclasses import dataclass
from typing import Literal

from landmark.config.errors import require

OPTIMIZER_RATES = {"sgd": 0.05, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001, "muon": 0.002}
"""Default learning rate of each optimizer."""


@dataclass(kw_only=True, frozen=True)
class OptimizerConfig:
    """How the weights are updated."""

    name: Literal["sgd", "rmsprop", "adam", "adamw", "muon"] = "sgd"
    """Optimizer. muon orthogonalizes the updates of matrices and kernels (Jordan et al. 2024), and updates the first layer, the
    classifier, norms and biases as adamw does."""
    lr: float | None = None
    """Peak learning rate. [default: 0.05 for sgd, 0.002 for muon, else 0.001]"""
    base_batch_size: int | None = None
    """Batch size that the learning rate is meant for. sgd multiplies the learning rate by loader.batch_size /
    base_batch_size, the others by its square root. See Goyal et al. 2017 and Malladi et al. 2022. [default: no
    scaling]"""
    momentum: float = 0.9
    """Momentum (sgd). It is Nesterov momentum. The other optimizers ignore this option."""
    weight_decay: float = 0.0
    """Weight decay, L2 for sgd, rmsprop and adam, decoupled for adamw and muon. It does not apply to norms and biases."""
    layer_decay: float = 1.0
    """Layer-wise decay of the learning rate, from the classifier to the input. The learning rate of each stage is that
    of the following stage times this factor (Howard & Ruder 2018)."""
    clip_norm: float | None = None
    """Maximum norm of the gradient. [default: no clipping]"""
    nonfinite: Literal["stop", "skip"] = "stop"
    """Handling of a loss or gradient that is not finite. stop ends the run with an error and keeps the checkpoints from
    before. skip leaves the weights unchanged, continues, and counts the step in skipped_steps."""

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
    """How the learning rate changes over the run. All schedules except plateau change it at every step."""

    name: Literal["constant", "step", "cosine", "one_cycle", "plateau"] = "one_cycle"
    """Learning rate schedule. plateau lowers the learning rate if the monitored metric stops improving."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0 (constant, step, cosine)."""
    step_epochs: int = 10
    """Epochs between two reductions (step)."""
    factor: float = 0.1
    """Factor on the learning rate at each reduction (step, plateau)."""
    patience: int = 3
    """Epochs without improvement before a reduction (plateau)."""
    peak_at: float = 0.3
    """Fraction of the run at which the learning rate peaks (one_cycle)."""

    def __post_init__(self) -> None:
        require(self.warmup_epochs >= 0, f"schedule.warmup_epochs is {self.warmup_epochs}; expected 0 or more")
        require(self.step_epochs >= 1, f"schedule.step_epochs is {self.step_epochs}; expected 1 or more")
        require(0 < self.factor < 1, f"schedule.factor is {self.factor}; expected between 0 and 1")
        require(self.patience >= 0, f"schedule.patience is {self.patience}; expected 0 or more")
        require(0 < self.peak_at < 1, f"schedule.peak_at is {self.peak_at}; expected between 0 and 1")


@dataclass(kw_only=True, frozen=True)
class LossConfig:
    """The loss function, cross entropy."""

    label_smoothing: float = 0.0
    """Fraction of the target that is distributed over all classes."""
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    """Loss weight of an image by the size of its class. none weights all images equally. sqrt and balanced weight by
    1/sqrt(n) and 1/n, for a class with n training images. The mean weight over all images is 1."""
    logit_adjustment: float = 0.0
    """Factor of log(n) that training adds to the logit of a class with n training images, for long-tailed data (Menon et
    al. 2021). Predictions then favor rare classes. 1 is the balanced softmax (Ren et al. 2020), 0 is off."""

    def __post_init__(self) -> None:
        require(0 <= self.logit_adjustment <= 10, f"loss.logit_adjustment is {self.logit_adjustment}; expected 0 to 10")
        require(0 <= self.label_smoothing < 1, f"loss.label_smoothing is {self.label_smoothing}; expected 0 to below 1")


@dataclass(kw_only=True, frozen=True)
class ComputeConfig:
    """How a training step is computed. Except for sync_batchnorm, the options change the learned weights only by
    rounding."""

    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Automatic mixed precision (autocast). auto uses bf16 on GPUs that support it and on CPUs with AMX.
    On older GPUs with tensor cores (V100, T4), auto uses fp16 with loss scaling. Otherwise it is off. off uses fp32, on
    GPUs without TF32."""
    channels_last: bool = True
    """Use the channels-last memory format, the fastest one for convolutions."""
    compile: bool = False
    """Compile the model with torch.compile. It takes minutes at the start, and makes the steps faster."""
    accumulate: int = 1
    """Number of micro-batches per step (gradient accumulation). Each training process computes its part of the batch in
    this many pieces, to save memory. Gradients are exchanged once per step. The batch size does not change."""
    deterministic: bool = False
    """Use only deterministic algorithms. Two identical runs then have bit-identical weights, on GPUs too, but training
    is slower."""
    gradient_checkpointing: bool = False
    """Recompute the activations of each block in the backward pass. This saves most of their memory, and costs about a
    third more computation."""
    sync_batchnorm: bool = False
    """Synchronize batch norm over all training processes (SyncBatchNorm). Use it if there are few images per GPU.
    Requires several processes with a GPU each, and workers.backend ddp."""
    ddp_comm_hook: Literal["none", "bf16_compress"] = "none"
    """How training processes exchange gradients. bf16_compress sends them in bf16, which is half the bytes. Requires
    several processes and workers.backend ddp."""

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, f"compute.accumulate is {self.accumulate}; expected 1 or more")
        require(
            not (self.gradient_checkpointing and self.compile),
            "compute.gradient_checkpointing and compute.compile are both true, but torch.compile chooses by itself what to "
            "recompute; remove one of the two",
        )

    def exchanges(self) -> str | None:
        """Return the name of an option that is set and requires several workers with the backend ddp. None if there is
        none."""
        if self.sync_batchnorm:
            return "sync_batchnorm"
        return None if self.ddp_comm_hook == "none" else "ddp_comm_hook"


@dataclass(kw_only=True, frozen=True)
class EmaConfig:
    """Exponential moving average (EMA) of the weights. If it is on, the average is validated and saved as the model."""

    decay: float | None = None
    """Decay of the moving average per step. [default: no moving average]"""
    warmup: bool = True
    """Warm up the decay, which is then at most (1 + step) / (10 + step)."""
    start_weight: float = 0.0
    """Weight of the start weights in the model that is validated and saved. With a probe, they include its classifier. 0.5 is
    the mean of the start and the moving average, which is more accurate on other photographs (WiSE-FT, Wortsman et al.
    2022). Requires ema.decay, a probe and model.freeze_norm_stats."""

    def __post_init__(self) -> None:
        require(self.decay is None or 0 < self.decay < 1, f"ema.decay is {self.decay}; expected between 0 and 1")
        require(0 <= self.start_weight < 1, f"ema.start_weight is {self.start_weight}; expected 0 to below 1")
        require(
            self.start_weight == 0 or self.decay is not None,
            "ema.start_weight is set without ema.decay; set ema.decay, or remove ema.start_weight",
        )
