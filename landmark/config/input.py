"""Configs of what reaches the model: loader, augmentation, sampling, image size over the epochs."""

from dataclasses import dataclass
from typing import Literal

from landmark.config.errors import require


@dataclass(kw_only=True, frozen=True)
class LoaderConfig:
    """How images reach the model."""

    image_size: int = 224
    """Width and height of the model's input, pixels."""
    batch_size: int = 64
    """Images a step over all workers together."""
    stream: Literal["auto", "thread", "ray"] = "auto"
    """Who reads the shards: threads of the training process, or Ray actors. auto: ray for several workers, else thread."""
    readers: int = 1
    """Reading threads or Ray reader actors a worker; more where a bucket answers slowly."""
    reader_cpus: float = 0.25
    """CPUs that Ray reserves for a reader actor."""
    decode_threads: int | None = None
    """Threads that decode images in a training process; empty: the CPUs the process may use."""
    shuffle_row_groups: int = 8
    """Row groups whose images are mixed with each other in a training epoch."""
    prefetch_batches: int = 4
    """Decoded batches that wait ready."""
    decode: Literal["worker", "data"] = "worker"
    """Where images are decoded. worker: in threads of the training process; data: in Ray actors, for clusters with nodes that have
    CPUs to spare (stream: ray)."""
    data_cpus: float = 1.0
    """decode data: CPUs that Ray reserves for a decoding actor."""
    decoders: int = 1
    """decode data: decoding actors a worker."""
    damaged: Literal["stop", "skip"] = "stop"
    """What a missing or damaged shard does, or an image that cannot be decoded. stop: end with an error; skip: go on without
    these images, which are counted as lost_images: in training images read before them are shown once more, in evaluation
    fewer are counted."""

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
        require(self.data_cpus > 0, f"loader.data_cpus is {self.data_cpus}; expected above 0")
        require(self.decoders >= 1, f"loader.decoders is {self.decoders}; expected 1 or more")
        require(
            not (self.decode == "data" and self.stream == "thread"),
            "loader.decode is data, but loader.stream is thread; set loader.stream to ray or auto",
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
    randaugment_ops: int = 0
    """RandAugment (Cubuk et al. 2020): operations an image, drawn from 14; 0: none."""
    randaugment_magnitude: float = 9.0
    """RandAugment: strength of the operations, 0 to 30."""
    erasing: float = 0.0
    """Random erasing (Zhong et al. 2017): share of images of which a rectangle is blanked."""
    mixup: float = 0.0
    """MixUp (Zhang et al. 2018): alpha of the Beta distribution; 0: none."""
    cutmix: float = 0.0
    """CutMix (Yun et al. 2019): alpha of the Beta distribution; 0: none. With both, each batch draws one of the two."""
    mix_share: float = 1.0
    """Share of the batches that are mixed, where mixup or cutmix is above 0."""

    def __post_init__(self) -> None:
        low, high = self.crop_area
        require(0 < low <= high <= 1, f"augment.crop_area is {low} {high}; expected 0 < least <= greatest <= 1")
        require(self.crop_aspect >= 1, f"augment.crop_aspect is {self.crop_aspect}; expected 1 or more")
        require(0 <= self.randaugment_ops <= 11, f"augment.randaugment_ops is {self.randaugment_ops}; expected 0 to 11")
        require(
            0 <= self.randaugment_magnitude <= 30,
            f"augment.randaugment_magnitude is {self.randaugment_magnitude}; expected 0 to 30",
        )
        for name in ("mixup", "cutmix"):
            require(getattr(self, name) >= 0, f"augment.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("erasing", "mix_share"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}; expected 0 to 1")


@dataclass(kw_only=True, frozen=True)
class SamplingConfig:
    """How often an epoch shows each training image. An epoch has as many images as the split has, whatever the choice."""

    name: Literal["uniform", "sqrt", "balanced"] = "uniform"
    """uniform: each image once. balanced: each class as often as any other, its images repeated or left out; sqrt: each class in
    proportion to the square root of its images. Which images an epoch shows is a function of (seed, epoch) alone."""
    max_repeats: int = 16
    """Most times that an epoch shows one image."""

    def __post_init__(self) -> None:
        require(self.max_repeats >= 1, f"sampling.max_repeats is {self.max_repeats}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class ResizingConfig:
    """Progressive resizing: small images at first, loader.image_size at the end (Howard 2018; Touvron et al. 2019)."""

    start_size: int | None = None
    """Width and height of the input in the first epoch, pixels; empty: loader.image_size in all epochs."""
    full_at: float = 0.75
    """Share of the epochs after which the input has its full size; it grows linearly until then, in steps of 16 pixels."""
    scale_batch: bool = False
    """Make the batch larger while images are small, so that a step has as many pixels; the learning rate follows
    where optimizer.base_batch_size is set."""

    def __post_init__(self) -> None:
        require(
            self.start_size is None or 16 <= self.start_size <= 2048,
            f"resizing.start_size is {self.start_size}; expected 16 to 2048",
        )
        require(0 < self.full_at <= 1, f"resizing.full_at is {self.full_at}; expected above 0, up to 1")
