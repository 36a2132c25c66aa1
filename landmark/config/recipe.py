"""Config of a recipe: the options that decide what is learned (model, optimization, input and epochs)."""

import math
from dataclasses import dataclass, field
from typing import Literal

from landmark.config.distill import DistillConfig
from landmark.config.errors import require
from landmark.config.head import HeadConfig
from landmark.config.input import AugmentConfig, LoaderConfig, ResizingConfig, SamplingConfig
from landmark.config.optimization import ComputeConfig, EmaConfig, LossConfig, OptimizerConfig, ScheduleConfig
from landmark.config.probe import ProbeConfig

MAX_EPOCHS = 100_000
"""Maximum number of epochs of a run with a time limit."""


@dataclass(kw_only=True, frozen=True)
class ModelConfig:
    """The model, and its start weights."""

    backbone: str = "resnet18"
    """Name of the model. `landmark models` lists the names. hf_hub:OWNER/NAME is the timm model of a repository of the Hugging Face
    hub, with weights pretrained those of the repository."""
    weights: str | None = None
    """Start weights, as pretrained, a file (path or URI), a name, or lite0. pretrained is the model's own weights, from the
    mirror in LANDMARK_WEIGHTS, a cache, or a download. A file has the format safetensors or state dict. Names are those of
    torchvision, such as IMAGENET1K_V2, or hf_hub:OWNER/NAME for timm's models. lite0 is ImageNet weights for
    timm/tf_efficientnet_lite0, without a download (extra lite0). [default: random]"""
    freeze_backbone: bool = False
    """Train only the classifier, and the neck and gem pooling if there are any."""
    freeze_stages: int = 0
    """Number of stages, counted from the input, that are not trained. `landmark models NAME --stages` lists the stages
    of a model."""
    tuning: Literal["all", "norm_bias", "lora"] = "all"
    """Weights of the backbone that are trained, if it is not frozen. norm_bias trains only norms and biases, less than 1%
    of a transformer's weights (BitFit, Ben Zaken et al. 2022). lora trains low-rank updates of the matrices and kernels (Hu et al.
    2022), which the stored model contains as part of its weights."""
    lora_rank: int | None = None
    """Rank of the updates (tuning lora). [default: 8]"""
    freeze_norm_stats: bool = False
    """Keep the running statistics of all batch norms as in the start weights, and use them in training. This suits small
    batches and small datasets."""
    dropout: float | None = None
    """Dropout before the classifier, if the model has one. [default: the model's]"""
    drop_path: float | None = None
    """Rate of stochastic depth (drop path), if the model has it. [default: the model's]"""
    pooling: Literal["avg", "gem"] = "avg"
    """How the last feature map becomes one vector. avg is the model's own pooling. gem replaces an average over the
    whole map by the generalized mean with a learned power (GeM, arXiv 1711.02512)."""
    neck: int = 0
    """Embedding size, 0 for none. The neck is a linear layer and a batch norm before the classifier."""
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        require(self.neck >= 0, f"model.neck is {self.neck}; expected 0 or more")
        require(
            self.head.sample is None or not self.freeze_backbone or self.neck > 0,
            "model.freeze_backbone leaves only class weights, which model.head.sample trains separately; set model.neck to add layers",
        )
        require(
            self.tuning == "all" or not self.freeze_backbone,
            f"model.tuning is {self.tuning}, but model.freeze_backbone trains only the classifier; remove one of the two",
        )
        require(
            self.lora_rank is None or self.tuning == "lora",
            f"model.lora_rank is set, but model.tuning is {self.tuning}; set model.tuning to lora, or remove model.lora_rank",
        )
        require(
            self.lora_rank is None or self.lora_rank >= 1, f"model.lora_rank is {self.lora_rank}; expected 1 or more"
        )
        require(self.freeze_stages >= 0, f"model.freeze_stages is {self.freeze_stages}; expected 0 or more")
        require(
            self.dropout is None or 0 <= self.dropout < 1, f"model.dropout is {self.dropout}; expected 0 to below 1"
        )

        require(
            self.drop_path is None or 0 <= self.drop_path < 1,
            f"model.drop_path is {self.drop_path}; expected 0 to below 1",
        )

    def is_embedding(self) -> bool:
        """Return whether pooling, neck or head differ from the model's own."""
        return self.pooling != "avg" or self.neck > 0 or self.head.name != "linear" or self.head.sample is not None


@dataclass(kw_only=True, frozen=True)
class EarlyStoppingConfig:
    """When a run ends before its last epoch."""

    patience: int | None = None
    """Epochs without improvement of the monitored metric before the run ends. [default: no early stopping]"""
    min_delta: float = 0.0
    """Minimum change that counts as an improvement, in the metric's unit."""

    def __post_init__(self) -> None:
        require(
            self.patience is None or self.patience >= 1,
            f"early_stopping.patience is {self.patience}; expected 1 or more",
        )
        require(self.min_delta >= 0, f"early_stopping.min_delta is {self.min_delta}; expected 0 or more")


@dataclass(kw_only=True, frozen=True)
class Recipe:
    """All options that decide what a run learns, except the dataset."""

    epochs: int = 10
    """Passes over the training split."""
    seed: int = 0
    """Seed of the weights, the order of the images and the augmentation."""
    monitor: Literal["val_top1", "val_top5", "val_macro_recall", "val_loss", "val_calibrated_loss"] = "val_top1"
    """Metric for early stopping and for choosing the best checkpoint. val_calibrated_loss is val_loss with the temperature of
    the epoch. It separates epochs better than accuracy if there are few validation images. For both losses, lower is better."""
    model: ModelConfig = field(default_factory=ModelConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    resizing: ResizingConfig = field(default_factory=ResizingConfig)

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs is {self.epochs}; expected 1 or more")
        require(
            self.schedule.warmup_epochs < self.epochs,
            f"schedule.warmup_epochs is {self.schedule.warmup_epochs}; expected below epochs ({self.epochs})",
        )
        for key, used in (
            ("ema.decay", self.ema.decay is not None),
            ("compute.accumulate", self.compute.accumulate > 1),
            ("loss.logit_adjustment", self.loss.logit_adjustment > 0),
            ("distill.teachers", bool(self.distill.teachers)),
        ):
            require(
                self.model.head.sample is None or not used,
                f"{key} is set, which model.head.sample does not support; remove one of the two",
            )
        self._check_probe()
        self._check_start_weight()
        start = self.resizing.start_size
        require(
            start is None or start <= self.loader.image_size,
            f"resizing.start_size is {start}; expected up to loader.image_size ({self.loader.image_size})",
        )

    def is_probe(self) -> bool:
        """Return whether the run only fits a classifier to features."""
        return self.probe.head != "none" and self.model.freeze_backbone

    def _check_start_weight(self) -> None:
        if not self.ema.start_weight:
            return
        require(
            self.probe.head != "none" and self.model.weights is not None,
            "ema.start_weight is set, but the run starts at a random classifier; set model.weights and probe.head, or set "
            "ema.start_weight to 0",
        )
        require(
            self.model.freeze_norm_stats,
            "ema.start_weight is set, but batch norm statistics do not fit averaged weights; set model.freeze_norm_stats, or "
            "set ema.start_weight to 0",
        )

    def _check_probe(self) -> None:
        head = self.probe.head
        if head == "none":
            return
        require(
            self.model.weights is not None,
            f"probe.head is {head}, but model.weights is unset, so the features would be those of random weights; set "
            "model.weights, or set probe.head to none",
        )
        for key, used in (
            ("model.neck", self.model.neck > 0),
            ("model.head.sample", self.model.head.sample is not None),
            ("model.head.name subcenter", self.model.head.name == "subcenter"),
        ):
            require(
                not used, f"probe.head is {head}, which does not support {key}; remove it, or set probe.head to none"
            )
        require(
            self.model.head.name == "linear" or head == "prototypes",
            f"probe.head is {head}, but model.head.name is {self.model.head.name}, whose classes are directions; set "
            "probe.head to prototypes",
        )
        require(
            self.loss.logit_adjustment == 0 or head == "logistic",
            f"loss.logit_adjustment is set, but probe.head is {head}; set probe.head to logistic, or remove loss.logit_adjustment",
        )
        require(
            not self.is_probe() or not self.distill.teachers,
            "distill.teachers is set, but with model.freeze_backbone the probe is the whole run, which learns only from labels; "
            "set model.freeze_backbone to false to fine-tune, or remove distill.teachers",
        )
        require(
            not self.is_probe() or self.epochs == 1,
            f"epochs is {self.epochs}, but with model.freeze_backbone the probe is the whole run; set epochs to 1, or set "
            "model.freeze_backbone to false to fine-tune",
        )

    def monitor_mode(self) -> Literal["max", "min"]:
        """Return whether the monitored metric is better when greater or when smaller."""
        return "min" if self.monitor in ("val_loss", "val_calibrated_loss") else "max"

    def shape(self, epoch: int) -> tuple[int, int]:
        """Return the image size (pixels) and the batch (images over all workers) of an epoch, counted from 1."""
        full, batch = self.loader.image_size, self.loader.batch_size
        start = self.resizing.start_size
        if start is None or start >= full:
            return full, batch
        growing = max(1, math.ceil(self.resizing.full_at * self.epochs) - 1)
        fraction = min(1.0, (epoch - 1) / growing)
        size = full if fraction == 1 else min(full, round((start + (full - start) * fraction) / 16) * 16)
        return size, round(batch * (full / size) ** 2) if self.resizing.scale_batch else batch


def last_epoch(recipe: Recipe, limit_s: float | None) -> int:
    """Return the number of a run's last epoch. One with a time limit does not reach it."""
    return recipe.epochs if limit_s is None else MAX_EPOCHS
