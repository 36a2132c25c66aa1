"""Configs of the model's input: loader, augmentation, sampling, and image size over the epochs."""

import os
import re
from dataclasses import dataclass
from typing import Literal

from landmark.config.errors import require

CROP_PCT = 0.95
"""Default of loader.crop_pct, and its value in models that do not state it."""


@dataclass(kw_only=True, frozen=True)
class CacheOptions:
    """The cache of images on the node's disk."""

    cache: str | None = None
    """Folder on the node's disk that caches what is read from the dataset. All runs and trials of a node share it. A
    second epoch or trial reads no images from the bucket. [default: no cache]"""
    cache_gib: float | None = None
    """Maximum size of the cache, GiB, required with cache. Images are removed in LRU order. [default: no
    cache]"""
    cache_format: Literal["jpeg", "yuv420"] = "jpeg"
    """How the cache stores images. jpeg stores them as the dataset does. yuv420 stores decoded pixels (YUV 4:2:0), so
    that images are decoded only once. It is faster and takes about four times as much space. If the decoded images do
    not fit, JPEGs are cached instead. `landmark train --dry-run` prints both sizes and rates."""

    def check_cache(self, prefix: str = "") -> None:
        """Raise ValueError for options that do not apply or are out of range. prefix: their group in messages."""
        name = f"{prefix}cache"
        if self.cache is None:
            require(
                self.cache_gib is None, f"{name}_gib is set without {name}; add --cache FOLDER, or remove {name}_gib"
            )
            require(
                self.cache_format == "jpeg",
                f"{name}_format is {self.cache_format} without {name}; add --cache FOLDER, or remove {name}_format",
            )
            return
        is_folder = bool(self.cache) and "://" not in self.cache
        require(is_folder, f"{name} is {self.cache!r}; expected a folder on the node's own disk, not a URI")
        require(self.cache_gib is not None, f"{name} is set without {name}_gib; add --cache-gib with its maximum size")
        require((self.cache_gib or 0) > 0, f"{name}_gib is {self.cache_gib}; expected above 0")

    def cache_options(self) -> "CacheOptions":
        """Return only these options, with an absolute path, because other processes run in another directory."""
        folder = None if self.cache is None else os.path.abspath(os.path.expanduser(self.cache))
        return CacheOptions(cache=folder, cache_gib=self.cache_gib, cache_format=self.cache_format)


@dataclass(kw_only=True, frozen=True)
class LoaderConfig(CacheOptions):
    """How images are read, decoded and batched."""

    image_size: int = 224
    """Width and height of the model's input, pixels."""
    crop_pct: float = CROP_PCT
    """Side of the center crop of validation and inference, as a fraction of the image's short side."""
    batch_size: int = 64
    """Global batch size, over all training processes together. `landmark train` also accepts auto, the largest that fits into the
    memory of the GPUs."""
    stream: Literal["auto", "thread", "ray"] = "auto"
    """What reads the shards, threads of the training process or Ray Data. auto uses Ray Data for several training
    processes or decode data, else threads."""
    readers: int = 1
    """Ray Data readers per stream. A training process has two streams, training and validation. Threads (stream thread)
    adapt to the storage without this option."""
    reader_cpus: float = 0.25
    """CPUs that Ray reserves for each reader of Ray Data."""
    decode_threads: int | None = None
    """Decoding threads per training process. [default: the CPUs that the process may use]"""
    shuffle_row_groups: int = 8
    """Number of row groups whose images are shuffled together in training."""
    prefetch_batches: int = 4
    """Number of decoded batches to prefetch."""
    decode: Literal["worker", "data"] = "worker"
    """Where training images are decoded. worker uses threads of the training process. data uses decoders of Ray Data,
    for clusters with nodes that have spare CPUs (not with stream thread)."""
    data_cpus: float = 1.0
    """CPUs that Ray reserves for each decoder of Ray Data (decode data)."""
    decoders: int | str = 1
    """Decoders of Ray Data per training process (decode data). With a range such as 1:8, Ray Data adds decoders while
    they limit the throughput, if CPUs are free."""
    corrupt: Literal["stop", "skip"] = "stop"
    """Handling of missing or corrupt shards and images that cannot be decoded. stop ends with an error. skip continues
    without these images and counts them as lost_images. In training, images that were read before replace them. In
    evaluation, fewer images count."""

    def __post_init__(self) -> None:
        require(16 <= self.image_size <= 2048, f"loader.image_size is {self.image_size}; expected 16 to 2048")
        require(0 < self.crop_pct <= 1, f"loader.crop_pct is {self.crop_pct}; expected above 0, up to 1")
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
        require(
            bool(re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", str(self.decoders))) and self.min_decoders <= self.max_decoders,
            f"loader.decoders is {self.decoders}; expected a number of 1 or more, or minimum:maximum such as 1:8",
        )
        require(
            not (self.decode == "data" and self.stream == "thread"),
            "loader.decode is data, but loader.stream is thread; set loader.stream to ray or auto",
        )
        require(self.prefetch_batches >= 1, f"loader.prefetch_batches is {self.prefetch_batches}; expected 1 or more")
        self.check_cache("loader.")

    @property
    def min_decoders(self) -> int:
        """Minimum number of decoders."""
        return int(str(self.decoders).split(":")[0])

    @property
    def max_decoders(self) -> int:
        """Maximum number of decoders."""
        return int(str(self.decoders).split(":")[-1])


@dataclass(kw_only=True, frozen=True)
class AugmentConfig:
    """Augmentation of training images. Each augmentation is a function of only (seed, epoch, sample)."""

    crop_area: tuple[float, float] = (0.35, 1.0)
    """Minimum and maximum fraction of the image area in a random crop. 1 1 uses the center crop of validation."""
    crop_aspect: float = 4 / 3
    """Maximum aspect ratio of a random crop, width to height or the reverse."""
    flip: bool = True
    """Flip half of the images horizontally."""
    randaugment_ops: int = 0
    """RandAugment operations per image, 0 for none. They are sampled from 14 operations (Cubuk et al. 2020)."""
    randaugment_magnitude: float = 9.0
    """Strength of the RandAugment operations, 0 to 30."""
    erasing: float = 0.0
    """Fraction of images in which random erasing blanks a rectangle. Zhong et al. 2017 describe the method."""
    mixup: float = 0.0
    """MixUp alpha, the parameter of the Beta distribution, 0 for none. Zhang et al. 2018 describe the method."""
    cutmix: float = 0.0
    """CutMix alpha, the parameter of the Beta distribution, 0 for none. Yun et al. 2019 describe the method. If MixUp
    is also on, each batch uses one of the two at random."""
    mix_prob: float = 1.0
    """Fraction of batches that are mixed, if mixup or cutmix is above 0."""

    def __post_init__(self) -> None:
        low, high = self.crop_area
        require(0 < low <= high <= 1, f"augment.crop_area is {low} {high}; expected 0 < minimum <= maximum <= 1")
        require(self.crop_aspect >= 1, f"augment.crop_aspect is {self.crop_aspect}; expected 1 or more")
        require(0 <= self.randaugment_ops <= 11, f"augment.randaugment_ops is {self.randaugment_ops}; expected 0 to 11")
        require(
            0 <= self.randaugment_magnitude <= 30,
            f"augment.randaugment_magnitude is {self.randaugment_magnitude}; expected 0 to 30",
        )
        for name in ("mixup", "cutmix"):
            require(getattr(self, name) >= 0, f"augment.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("erasing", "mix_prob"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} is {getattr(self, name)}; expected 0 to 1")


@dataclass(kw_only=True, frozen=True)
class SamplingConfig:
    """How often an epoch uses each training image. An epoch always has as many images as the training split."""

    name: Literal["uniform", "sqrt", "balanced"] = "uniform"
    """Sampling of the training images. uniform uses each image once. balanced uses each class equally often, and
    repeats or leaves out images. sqrt uses each class in proportion to the square root of its images. The sample is a
    function of only (seed, epoch)."""
    max_repeats: int = 16
    """Maximum number of times that an epoch uses one image."""

    def __post_init__(self) -> None:
        require(self.max_repeats >= 1, f"sampling.max_repeats is {self.max_repeats}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class ResizingConfig:
    """Progressive resizing: small images first, loader.image_size at the end (Howard 2018; Touvron et al. 2019)."""

    start_size: int | None = None
    """Width and height of the input in the first epoch, pixels. [default: loader.image_size, in all epochs]"""
    full_at: float = 0.75
    """Fraction of the epochs after which the input has its full size. Until then, the size increases linearly in steps
    of 16 pixels."""
    scale_batch: bool = False
    """Use larger batches while images are small. Each step then has as many pixels. The learning rate follows if
    optimizer.base_batch_size is set."""

    def __post_init__(self) -> None:
        require(
            self.start_size is None or 16 <= self.start_size <= 2048,
            f"resizing.start_size is {self.start_size}; expected 16 to 2048",
        )
        require(0 < self.full_at <= 1, f"resizing.full_at is {self.full_at}; expected above 0, up to 1")
