"""Configs of `landmark.prepare`: where images come from, how they are split and packed."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from landmark.config.errors import require
from landmark.config.subset import Gldv2Config, SubsetConfig


@dataclass(kw_only=True, frozen=True)
class FoldersConfig:
    """Images in one folder a class: `<path>/<class>/<image>`."""

    path: str | None = None
    """Folder or URI (s3://…) that holds one folder a class."""
    groups: str | None = None
    """CSV file with columns id, group: images of a group never straddle a split. `id` is the file's name without its ending."""


@dataclass(kw_only=True, frozen=True)
class RepackConfig:
    """A packed dataset whose images become another one, each in the split that it has."""

    path: str | None = None
    """Folder or URI of the packed dataset."""


@dataclass(kw_only=True, frozen=True)
class SyntheticConfig:
    """Procedurally drawn landmarks, for trying everything without a dataset."""

    classes: int = 24
    """Number of landmarks."""
    images: int = 3000
    """Number of images in all, spread over the classes with a long tail: one a class or more. A class's only image is trained on."""
    image_size: int = 128
    """Width and height of an image, pixels."""
    tail: float = 0.4
    """Exponent of the class frequencies: the n-th class gets n^-tail of the first one's images; 0 is balanced."""
    label_noise: float = 0.0
    """Share of images that carry another class's label."""
    near_duplicates: float = 0.0
    """Share of images that are a re-encoded, slightly changed copy of another one."""
    nothing: float = 0.0
    """Share of images that show no landmark at all."""
    broken: float = 0.0
    """Share of files that cannot be decoded."""

    def __post_init__(self) -> None:
        require(self.classes >= 2, f"synthetic.classes is {self.classes}; expected 2 or more")
        require(
            self.images >= self.classes,
            f"synthetic.images is {self.images}; expected at least one a class ({self.classes})",
        )
        require(16 <= self.image_size <= 1024, f"synthetic.image_size is {self.image_size}; expected 16 to 1024")
        require(0 <= self.tail <= 2, f"synthetic.tail is {self.tail}; expected 0 to 2")
        for name in ("label_noise", "near_duplicates", "nothing", "broken"):
            share = getattr(self, name)
            require(0 <= share <= 0.5, f"synthetic.{name} is {share}; expected a share from 0 to 0.5")


@dataclass(kw_only=True, frozen=True)
class SplitConfig:
    """How images are divided: stratified by class, by a seed, whole groups at a time."""

    val: float = 0.15
    """Share of the images for validation."""
    test: float = 0.15
    """Share of the images for the final test."""

    def __post_init__(self) -> None:
        for name in ("val", "test"):
            share = getattr(self, name)
            require(0 <= share < 1, f"split.{name} is {share}; expected a share from 0 to 1")
        require(
            self.val + self.test < 0.9,
            f"split.val + split.test is {self.val + self.test:g}; expected below 0.9, to leave images to train on",
        )


def require_megapixels(name: str, value: int) -> None:
    """Raise UserError for a limit of an image's size that no image library can decode."""
    require(1 <= value <= 4000, f"{name} is {value}; expected 1 to 4000")


LARGEST_SHORT_SIDE = 4096
"""Pixels."""
MAX_MEGAPIXELS = 100
"""Default limit of an image's size, millions of pixels."""


@dataclass(kw_only=True, frozen=True)
class PackingConfig:
    """How images are stored: resized once, as JPEG, in Parquet shards of small row groups."""

    short_side: int = 288
    """Images are shrunk until their short side has this many pixels; never enlarged."""
    quality: int = 90
    """JPEG quality, 1 to 100."""
    shard_mib: int = 192
    """Size of a shard that is aimed at, MiB."""
    row_group_rows: int = 128
    """Images a row group: the unit that training reads."""
    max_reject_share: float = 0.05
    """Share of unreadable images above which the job stops."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Largest image that is decoded, millions of pixels; a larger one is rejected. Each takes about 12 bytes of memory per pixel."""

    def __post_init__(self) -> None:
        require(
            16 <= self.short_side <= LARGEST_SHORT_SIDE,
            f"packing.short_side is {self.short_side}; expected 16 to {LARGEST_SHORT_SIDE}",
        )
        require(1 <= self.quality <= 100, f"packing.quality is {self.quality}; expected 1 to 100")
        require(1 <= self.shard_mib <= 1024, f"packing.shard_mib is {self.shard_mib}; expected 1 to 1024")
        require(
            1 <= self.row_group_rows <= 4096, f"packing.row_group_rows is {self.row_group_rows}; expected 1 to 4096"
        )
        require(
            0 <= self.max_reject_share <= 1,
            f"packing.max_reject_share is {self.max_reject_share}; expected a share from 0 to 1",
        )
        require_megapixels("packing.max_megapixels", self.max_megapixels)


@dataclass(kw_only=True, frozen=True)
class ClusterConfig:
    """Which Ray cluster does the work."""

    address: str | None = None
    """Address of a running Ray cluster ("auto", "host:6379"); empty: the job's own or RAY_ADDRESS, else one is started here."""
    cpus: int | None = None
    """Logical CPUs of the Ray started here; empty: as many as the machine has."""

    def __post_init__(self) -> None:
        require(self.cpus is None or self.cpus >= 1, f"cluster.cpus is {self.cpus}; expected 1 or more")


@dataclass(kw_only=True, frozen=True)
class PrepareConfig:
    """Pack images and labels into a dataset that training streams."""

    output: str
    """Folder or URI (s3://bucket/key) of the packed dataset."""
    source: Literal["synthetic", "folders", "gldv2", "dataset"] | None = None
    """Where images come from. [default: the source whose options are given; synthetic images are made only by name]"""
    folders: FoldersConfig = field(default_factory=FoldersConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    gldv2: Gldv2Config = field(default_factory=Gldv2Config)
    dataset: RepackConfig = field(default_factory=RepackConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    subset: SubsetConfig = field(default_factory=SubsetConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    seed: int = 0
    """Seed of the synthetic images, the subset, the split and the order of the rows."""
    verify: bool = False
    """Pack nothing: check the finished dataset in `output` against its manifest."""

    def __post_init__(self) -> None:
        given = {name: _changed(getattr(self, name)) for name in SOURCES}
        if self.source is None and not self.verify:
            object.__setattr__(self, "source", _inferred({name: keys for name, keys in given.items() if keys}))
        if self.source is None:
            return
        for name, keys in given.items():
            require(
                name == self.source or not keys,
                f"{name}.{keys[0] if keys else ''} is set, but the source is {self.source}; leave one of them out",
            )
        require(
            self.source == "synthetic" or getattr(self, self.source).path is not None,
            f"{self.source}.path is missing; give {SOURCES[self.source]}",
        )
        require(
            self.source == "gldv2" or not self.subset.clean,
            "subset.clean is set, but only source gldv2 has a clean list; leave it out",
        )
        changed = _changed(self.split)
        require(
            self.source != "dataset" or not changed,
            f"split.{changed[0] if changed else ''} is set, but the images of a packed dataset keep their splits; leave it out",
        )


SOURCES = {
    "folders": "the folder that holds one folder per class",
    "gldv2": "the folder or URI that holds train.csv and the images",
    "dataset": "the folder or URI of a packed dataset",
    "synthetic": "",
}
"""Each source, and what its path is."""


def _changed(section: Any) -> list[str]:
    """Return the names of a section's options that do not have their default."""
    default = type(section)()
    names = [field.name for field in dataclasses.fields(section)]
    return [name for name in names if getattr(section, name) != getattr(default, name)]


def _inferred(given: dict[str, list[str]]) -> str:
    """Return the source whose options are given; raises ValueError where that is none or several, or synthetic."""
    require(
        bool(given),
        "no source is given; add --folders.path, --gldv2.path or --dataset.path, or --source synthetic for synthetic images",
    )
    options = [f"{name}.{keys[0]}" for name, keys in given.items()]
    require(len(given) == 1, f"{' and '.join(options)} are of different sources; leave all but one source out")
    name = next(iter(given))
    require(
        name != "synthetic", f"{options[0]} is set; add --source synthetic to make synthetic images, or leave it out"
    )
    return name
