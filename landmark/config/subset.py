"""Configs of the published files of GLDv2, and of subsets of any dataset."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from landmark.config.errors import require

RULE_NOTE = (
    "its subset was chosen by rule {recorded} and stays the same (subset.rule {recorded} chooses images of test and val first); "
    "to choose by rule {rule}, use a new --name or --output"
)


def _short(flag: str) -> object:
    """Give a field a short flag on the command line, in addition to its full one."""
    return tyro.conf.arg(aliases=[flag])


@dataclass(kw_only=True, frozen=True)
class Gldv2Config:
    """The Google Landmarks Dataset v2, as published."""

    path: str | None = None
    """Folder or URI (s3://, https://) of the published files. It contains train.csv or metadata/train.csv, and the
    folder train with tars or images. [default: none]"""
    images: Literal["auto", "tars", "tree"] = "auto"
    """Layout of the image files. tars is train/images_NNN.tar, and tree is the extracted train/a/b/c/<id>.jpg. auto
    uses the tars if there are any."""
    tars: int = 500
    """Number of tars from images_000.tar on, for https:// paths only. HTTP servers do not list folders."""
    check_md5: bool = True
    """Verify the MD5 checksum of each tar. The file is md5sum/train/md5.images_NNN.txt, if it exists."""
    attribution: bool = False
    """Add the author and license of each image to the catalog. They are read from train_attribution.csv. Filtering by
    license requires them."""
    max_fault_fraction: float = 0.01
    """Maximum fraction of malformed, duplicate or missing rows. Above it, the command ends with an error."""

    def __post_init__(self) -> None:
        require(self.tars >= 1, f"gldv2.tars is {self.tars}; expected 1 or more")
        require(
            0 <= self.max_fault_fraction <= 1,
            f"gldv2.max_fault_fraction is {self.max_fault_fraction}; expected a fraction from 0 to 1",
        )


@dataclass(kw_only=True, frozen=True)
class SubsetConfig:
    """The classes and images that are kept. Conditions apply in the order of these fields."""

    clean: Annotated[bool, _short("--clean")] = False
    """Keep only the images of train_clean.csv (GLDv2)."""
    licenses: Annotated[tuple[str, ...], _short("--licenses")] = ()
    """Keep images whose license contains one of these texts. [default: any license]"""
    landmarks: Annotated[str | None, _short("--landmarks")] = None
    """File with the landmark ids of the classes to keep, one per line. [default: all classes]"""
    where: Annotated[str | None, _short("--where")] = None
    """Keep rows that satisfy this comparison of columns. An example is "category == 'Church' and width >= 300".
    [default: all rows]"""
    min_images: Annotated[int, _short("--min-images")] = 1
    """Minimum images per class. Classes with fewer images are dropped."""
    classes: Annotated[int | None, _short("--classes")] = None
    """Number of classes to keep. [default: all]"""
    choose: Annotated[Literal["frequent", "random"], _short("--choose")] = "frequent"
    """How classes are chosen, the most frequent ones or a seeded random sample."""
    max_images: Annotated[int | None, _short("--max-images")] = None
    """Maximum images per class, a seeded random sample. [default: no limit]"""
    images: Annotated[int | None, _short("--images")] = None
    """Maximum images in total, a seeded random sample. It keeps one or more images per class, and min_images if
    possible. [default: no limit]"""
    tail: Annotated[float, _short("--tail")] = 0.0
    """Exponent of a long tail over the training split's classes, 0 for none. The n-th most frequent class keeps up to
    n^-tail times as many images as the most frequent one. Each class keeps a seeded random sample of one or more
    images. val and test do not change."""
    shots: Annotated[int | None, _short("--shots")] = None
    """Maximum training images per class (few-shot learning), a seeded random sample. val and test do not change.
    [default: no limit]"""
    rule: Literal[1, 2] = 2
    """Rule of the random choices. With 2, each choice is independent of the others and of the splits. With 1, images of
    test and val are chosen first, as in versions that record no rule. Resumed runs and studies keep their rule."""

    def __post_init__(self) -> None:
        require(self.min_images >= 1, f"subset.min_images is {self.min_images}; expected 1 or more")
        for name in ("classes", "max_images", "images", "shots"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"subset.{name} is {value}; expected 1 or more")
        require(
            self.classes is None or self.images is None or self.images >= self.classes,
            f"subset.images is {self.images}; expected at least one per class ({self.classes})",
        )
        require(0 <= self.tail <= 2, f"subset.tail is {self.tail}; expected 0 to 2")

    def keeps_all_images(self) -> bool:
        """Return whether the subset keeps all images."""
        return dataclasses.replace(self, rule=SubsetConfig.rule) == SubsetConfig()

    def is_random(self) -> bool:
        """Return whether any choice is random, so that seed and rule matter."""
        random_classes = self.classes is not None and self.choose == "random"
        limits = (self.max_images, self.images, self.shots)
        return random_classes or self.tail > 0 or any(limit is not None for limit in limits)

    def limits_training(self) -> bool:
        """Return whether fewer images are kept of the train split only."""
        return self.tail > 0 or self.shots is not None


def recorded_subset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded mapping of a subset with its rule. A record without a rule has rule 1."""
    return {"rule": 1, **values}


def resumed_subset(subset: SubsetConfig, recorded: SubsetConfig) -> tuple[SubsetConfig, str]:
    """Return the subset of a command that resumes a recorded one, with the recorded rule, and a note if the rule
    matters.

    The note is empty if both rules choose the same images. It is also empty if more than the rule differs, which the
    caller must reject.
    """
    resumed = dataclasses.replace(subset, rule=recorded.rule)
    if subset == resumed or resumed != recorded:
        return subset, ""
    return resumed, RULE_NOTE.format(recorded=recorded.rule, rule=subset.rule) if resumed.is_random() else ""


def with_recorded_subset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded config's mapping with the rule of its subset."""
    subset = values.get("subset")
    return {**values, "subset": recorded_subset(subset)} if isinstance(subset, Mapping) else dict(values)
