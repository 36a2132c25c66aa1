"""Configs that decide what is learned: model, optimizer, schedule, loader, augmentation, epochs."""

from dataclasses import dataclass, field
from typing import Literal

from landmark.config.errors import require

OPTIMIZER_RATES = {"sgd": 0.05, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001}
"""Learning rate of each optimizer where the config names none."""


@dataclass(kw_only=True, frozen=True)
class ModelConfig:
    """Which network, and what it starts from."""

    backbone: str = "resnet18"
    """Name of a network: `python -m landmark.models` lists them."""
    weights: str | None = None
    """Start weights: a safetensors or state-dict file (path or URI), or a torchvision name (DEFAULT, IMAGENET1K_V2); empty: random."""
    freeze_backbone: bool = False
    """Train the classifier alone."""
    dropout: float | None = None
    """Dropout before the classifier, where the network has one; empty: the network's own."""

    def __post_init__(self) -> None:
        require(
            self.dropout is None or 0 <= self.dropout < 1, f"model.dropout is {self.dropout}; expected 0 to below 1"
        )


@dataclass(kw_only=True, frozen=True)
class OptimizerConfig:
    """How weights are updated."""

    name: Literal["sgd", "rmsprop", "adam", "adamw"] = "sgd"
    """Optimizer."""
    lr: float | None = None
    """Peak learning rate; empty: 0.05 for sgd, 0.001 for the others."""
    momentum: float = 0.9
    """Momentum of sgd (Nesterov when above 0); the others ignore it."""
    weight_decay: float = 0.0
    """Weight decay: L2 for sgd, rmsprop and adam, decoupled for adamw. Norms and biases are exempt."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    clip_norm: float | None = None
    """Largest norm of the gradient; empty: not clipped."""

    def __post_init__(self) -> None:
        require(self.lr is None or self.lr > 0, f"optimizer.lr is {self.lr}; expected above 0")
        require(0 <= self.momentum < 1, f"optimizer.momentum is {self.momentum}; expected 0 to below 1")
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}; expected 0 or more")
        require(
            0 <= self.label_smoothing < 1,
            f"optimizer.label_smoothing is {self.label_smoothing}; expected 0 to below 1",
        )
        require(
            self.clip_norm is None or self.clip_norm > 0, f"optimizer.clip_norm is {self.clip_norm}; expected above 0"
        )

    def peak_lr(self) -> float:
        """Return the learning rate at the schedule's peak."""
        return OPTIMIZER_RATES[self.name] if self.lr is None else self.lr


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
class EarlyStoppingConfig:
    """When a run ends before its last epoch."""

    patience: int | None = None
    """Epochs without improvement of the monitored metric before the run ends; empty: never."""
    min_delta: float = 0.0
    """Smallest change that counts as an improvement, in the metric's unit."""

    def __post_init__(self) -> None:
        require(
            self.patience is None or self.patience >= 1,
            f"early_stopping.patience is {self.patience}; expected 1 or more",
        )
        require(self.min_delta >= 0, f"early_stopping.min_delta is {self.min_delta}; expected 0 or more")


@dataclass(kw_only=True, frozen=True)
class LoaderConfig:
    """How images reach the model."""

    image_size: int = 224
    """Width and height of the model's input, pixels."""
    batch_size: int = 64
    """Images a step over all workers together."""
    stream: Literal["auto", "thread", "ray"] = "auto"
    """Who reads the shards: a thread of the training process, or Ray Data reader actors. auto: ray for several workers, else thread."""
    readers: int = 1
    """Ray Data reader actors a worker."""
    reader_cpus: float = 0.25
    """CPUs that Ray reserves for a reader actor."""
    decode_threads: int | None = None
    """Threads that decode images in a training process; empty: the CPUs the process may use."""
    shuffle_row_groups: int = 8
    """Row groups whose images are mixed with each other in a training epoch."""
    prefetch_batches: int = 4
    """Decoded batches that wait ready."""
    damaged: Literal["stop", "skip"] = "stop"
    """What a missing or damaged shard does. stop: end with an error; skip: go on without its images, which are counted as
    lost_images: in training the images read before them are shown once more, in evaluation fewer are counted."""

    def __post_init__(self) -> None:
        require(16 <= self.image_size <= 2048, f"loader.image_size is {self.image_size}; expected 16 to 2048")
        require(self.batch_size >= 1, f"loader.batch_size is {self.batch_size}; expected 1 or more")
        require(self.readers >= 1, f"loader.readers is {self.readers}; expected 1 or more")
        require(self.reader_cpus > 0, f"loader.reader_cpus is {self.reader_cpus}; expected above 0")
        require(
            self.decode_threads is None or self.decode_threads >= 1,
            f"loader.decode_threads is {self.decode_threads}; expected 1 or more",
        )
        require(
            self.shuffle_row_groups >= 1, f"loader.shuffle_row_groups is {self.shuffle_row_groups}; expected 1 or more"
        )
        require(self.prefetch_batches >= 1, f"loader.prefetch_batches is {self.prefetch_batches}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class AugmentConfig:
    """How training images are varied. Each variation is a function of (seed, epoch, sample) alone."""

    crop_area: tuple[float, float] = (0.35, 1.0)
    """Least and greatest share of an image's area that a random crop shows; 1 1: the centre crop of evaluation."""
    crop_aspect: float = 4 / 3
    """Greatest stretch of a random crop, width to height or height to width."""
    flip: bool = True
    """Mirror half of the images left to right."""

    def __post_init__(self) -> None:
        low, high = self.crop_area
        require(0 < low <= high <= 1, f"augment.crop_area is {low} {high}; expected 0 < least <= greatest <= 1")
        require(self.crop_aspect >= 1, f"augment.crop_aspect is {self.crop_aspect}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class Recipe:
    """Everything that decides what a run learns, but for the dataset."""

    epochs: int = 10
    """Passes over the training split."""
    seed: int = 0
    """Seed of the weights, the order of the images and the augmentation."""
    monitor: Literal["val_top1", "val_top5", "val_macro_recall", "val_loss"] = "val_top1"
    """Metric by which the best checkpoint is chosen and early stopping judges; val_loss is minimised."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs is {self.epochs}; expected 1 or more")
        require(
            self.schedule.warmup_epochs < self.epochs,
            f"schedule.warmup_epochs is {self.schedule.warmup_epochs}; expected below epochs ({self.epochs})",
        )

    def monitor_mode(self) -> Literal["max", "min"]:
        """Return whether the monitored metric is better when greater or when smaller."""
        return "min" if self.monitor == "val_loss" else "max"
