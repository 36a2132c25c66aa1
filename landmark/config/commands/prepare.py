"""Configs of `landmark prepare`: the source of the images, their splits and their packing."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from landmark.config.errors import require
from landmark.config.subset import Gldv2Config, SubsetConfig


@dataclass(kw_only=True, frozen=True)
class FoldersConfig:
    """Images in one folder per class: `<path>/<class>/<image>`."""

    path: str | None = None
    """Folder or URI (s3://…) that contains one folder per class. [default: none]"""
    groups: str | None = None
    """CSV file with the columns id and group, to keep related images together. All images of a group are in the same
    split. id is the file name without its extension. [default: none]"""


@dataclass(kw_only=True, frozen=True)
class RepackConfig:
    """Repack the images of a packed dataset. Each image keeps its split."""

    path: str | None = None
    """Folder or URI of the packed dataset to repack. [default: none]"""


@dataclass(kw_only=True, frozen=True)
class SyntheticConfig:
    """Synthetic landmark images, for trying all commands without a dataset."""

    classes: int = 24
    """Number of landmarks."""
    images: int = 3000
    """Total number of images, distributed over the classes with a long tail. Each class has one image or more. The only
    image of a class is a training image."""
    image_size: int = 128
    """Width and height of an image, pixels."""
    tail: float = 0.4
    """Exponent of the class frequencies, 0 for balanced classes. The n-th class has n^-tail times as many images as the
    first one."""
    label_noise: float = 0.0
    """Fraction of images that have the label of another class."""
    near_duplicates: float = 0.0
    """Fraction of images that are near-duplicates. Each is a re-encoded, slightly changed version of another image."""
    nothing: float = 0.0
    """Fraction of images that are distractors (non-landmark images)."""
    broken: float = 0.0
    """Fraction of files that cannot be decoded."""

    def __post_init__(self) -> None:
        require(self.classes >= 2, f"synthetic.classes is {self.classes}; expected 2 or more")
        require(
            self.images >= self.classes,
            f"synthetic.images is {self.images}; expected at least one per class ({self.classes})",
        )
        require(16 <= self.image_size <= 1024, f"synthetic.image_size is {self.image_size}; expected 16 to 1024")
        require(0 <= self.tail <= 2, f"synthetic.tail is {self.tail}; expected 0 to 2")
        for name in ("label_noise", "near_duplicates", "nothing", "broken"):
            fraction = getattr(self, name)
            require(0 <= fraction <= 0.5, f"synthetic.{name} is {fraction}; expected a fraction from 0 to 0.5")


@dataclass(kw_only=True, frozen=True)
class SplitConfig:
    """How images are split: stratified by class, by a seed, with each group in one split."""

    val: float = 0.15
    """Fraction of the images in the validation split."""
    test: float = 0.15
    """Fraction of the images in the test split."""

    def __post_init__(self) -> None:
        for name in ("val", "test"):
            fraction = getattr(self, name)
            require(0 <= fraction < 1, f"split.{name} is {fraction}; expected a fraction from 0 to 1")
        require(
            self.val + self.test < 0.9,
            f"split.val + split.test is {self.val + self.test:g}; expected below 0.9, so that images are left for training",
        )


def require_megapixels(name: str, value: int) -> None:
    """Raise UserError for a limit of an image's size that no image library can decode."""
    require(1 <= value <= 4000, f"{name} is {value}; expected 1 to 4000")


MAX_SHORT_SIDE = 4096
"""Pixels."""
MAX_MEGAPIXELS = 100
"""Default limit of an image's size, millions of pixels."""


@dataclass(kw_only=True, frozen=True)
class PackingConfig:
    """How images are stored: resized once, as JPEG, in Parquet shards with small row groups."""

    short_side: int = 288
    """Maximum short side of an image, pixels. Larger images are downscaled, smaller images are not changed."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    shard_mib: int = 192
    """Target size of a shard, MiB."""
    row_group_rows: int = 128
    """Images per row group, the unit that training reads."""
    max_reject_fraction: float = 0.05
    """Maximum fraction of unreadable images. Above it, the command ends with an error."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Maximum size of an image that is decoded, millions of pixels. Larger images are rejected. Decoding takes about 12
    bytes of memory per pixel."""

    def __post_init__(self) -> None:
        require(
            16 <= self.short_side <= MAX_SHORT_SIDE,
            f"packing.short_side is {self.short_side}; expected 16 to {MAX_SHORT_SIDE}",
        )
        require(1 <= self.quality <= 100, f"packing.quality is {self.quality}; expected 1 to 100")
        require(1 <= self.shard_mib <= 1024, f"packing.shard_mib is {self.shard_mib}; expected 1 to 1024")
        require(
            1 <= self.row_group_rows <= 4096, f"packing.row_group_rows is {self.row_group_rows}; expected 1 to 4096"
        )
        require(
            0 <= self.max_reject_fraction <= 1,
            f"packing.max_reject_fraction is {self.max_reject_fraction}; expected a fraction from 0 to 1",
        )
        require_megapixels("packing.max_megapixels", self.max_megapixels)


@dataclass(kw_only=True, frozen=True)
class ClusterConfig:
    """The Ray cluster that runs the work."""

    address: str | None = None
    """Address of a running Ray cluster, such as auto or host:6379. A submitted job has RAY_ADDRESS set. [default:
    RAY_ADDRESS, else a new local cluster]"""
    cpus: int | None = None
    """Logical CPUs of a new local Ray cluster. [default: all of the machine]"""

    def __post_init__(self) -> None:
        require(self.cpus is None or self.cpus >= 1, f"cluster.cpus is {self.cpus}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class PrepareConfig:
    """Pack images and labels into a dataset that training streams."""

    output: str
    """Folder or URI (s3://bucket/key) of the packed dataset."""
    source: Literal["synthetic", "folders", "gldv2", "dataset"] | None = None
    """Source of the images. Synthetic images require --source synthetic. [default: the source whose options are
    given]"""
    folders: FoldersConfig = field(default_factory=FoldersConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    gldv2: Gldv2Config = field(default_factory=Gldv2Config)
    dataset: RepackConfig = field(default_factory=RepackConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = 0
    """Seed of the synthetic images, the subset, the split and the row order."""
    verify: bool = False
    """Check the dataset in --output against its manifest, and pack nothing."""

    def __post_init__(self) -> None:
        given = {name: _changed(getattr(self, name)) for name in SOURCES}
        if self.source is None and not self.verify:
            object.__setattr__(self, "source", _inferred({name: keys for name, keys in given.items() if keys}))
        if self.source is None:
            return
        for name, keys in given.items():
            require(
                name == self.source or not keys,
                f"{name}.{keys[0] if keys else ''} is set, but the source is {self.source}; remove one of the two",
            )
        require(
            self.source == "synthetic" or getattr(self, self.source).path is not None,
            f"{self.source}.path is missing; set it to {SOURCES[self.source]}",
        )
        require(
            self.source == "gldv2" or not self.subset.clean,
            "subset.clean is set, but only source gldv2 has a clean list; remove it",
        )
        changed = _changed(self.split)
        require(
            self.source != "dataset" or not changed,
            f"split.{changed[0] if changed else ''} is set, but the images of a packed dataset keep their splits; remove it",
        )


SOURCES = {
    "folders": "the folder that contains one folder per class",
    "gldv2": "the folder or URI that contains train.csv and the images",
    "dataset": "the folder or URI of a packed dataset",
    "synthetic": "",
}
"""Description of the path of each source, for messages."""


def _changed(section: Any) -> list[str]:
    """Return the names of a section's options that do not have their default."""
    default = type(section)()
    names = [field.name for field in dataclasses.fields(section)]
    return [name for name in names if getattr(section, name) != getattr(default, name)]


def _inferred(given: dict[str, list[str]]) -> str:
    """Return the source whose options are given. Raises ValueError if there is none, if there are several, or if it is
    synthetic."""
    require(
        bool(given),
        "no source is set; add --folders.path, --gldv2.path or --dataset.path, or --source synthetic for synthetic images",
    )
    options = [f"{name}.{keys[0]}" for name, keys in given.items()]
    require(len(given) == 1, f"{' and '.join(options)} belong to different sources; keep one source")
    name = next(iter(given))
    require(
        name != "synthetic", f"{options[0]} is set; add --source synthetic to generate synthetic images, or remove it"
    )
    return name
