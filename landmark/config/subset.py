"""Configs of GLDv2's own files and of subsets of any dataset."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from landmark.config.errors import require

RULE_NOTE = (
    "its subset was chosen by rule {recorded} of subset.rule, which it keeps: images of test and val were chosen before those "
    "of train; a new --name or --output chooses by rule {rule}"
)


def _short(flag: str) -> object:
    """Give a field a flag without its config's prefix on the command line, beside the full one."""
    return tyro.conf.arg(aliases=[flag])


@dataclass(kw_only=True, frozen=True)
class Gldv2Config:
    """The Google Landmarks Dataset v2 as it is published."""

    path: str | None = None
    """Folder or URI (s3://, https://) with train.csv, or metadata/train.csv, and the folder train of tars or images."""
    images: Literal["auto", "tars", "tree"] = "auto"
    """train/images_NNN.tar, or the extracted train/a/b/c/<id>.jpg; auto: tars where there are any."""
    tars: int = 500
    """https:// only, where folders cannot be listed: number of tars, images_000.tar onwards."""
    check_md5: bool = True
    """Compare each tar with md5sum/train/md5.images_NNN.txt, where that file exists."""
    attribution: bool = False
    """Take author and license of each image into the catalog (train_attribution.csv); needed to filter by license."""
    max_fault_share: float = 0.01
    """Share of malformed, duplicated or missing rows above which the job stops."""

    def __post_init__(self) -> None:
        require(self.tars >= 1, f"gldv2.tars is {self.tars}; expected 1 or more")
        require(
            0 <= self.max_fault_share <= 1,
            f"gldv2.max_fault_share is {self.max_fault_share}; expected a share from 0 to 1",
        )


@dataclass(kw_only=True, frozen=True)
class SubsetConfig:
    """Which classes and images are kept. Conditions apply in the order of these fields."""

    clean: Annotated[bool, _short("--clean")] = False
    """GLDv2: keep the images of train_clean.csv alone."""
    licenses: Annotated[tuple[str, ...], _short("--licenses")] = ()
    """Keep images whose license contains one of these texts; empty: any."""
    landmarks: Annotated[str | None, _short("--landmarks")] = None
    """File with one landmark id a line: keep these classes alone."""
    where: Annotated[str | None, _short("--where")] = None
    """Keep rows for which this comparison of columns holds, such as "category == 'Church' and width >= 300"."""
    min_images: Annotated[int, _short("--min-images")] = 1
    """Drop classes with fewer images."""
    classes: Annotated[int | None, _short("--classes")] = None
    """Number of classes; empty: all."""
    choose: Annotated[Literal["frequent", "random"], _short("--choose")] = "frequent"
    """Which classes: the most frequent ones, or a seeded random choice."""
    max_images: Annotated[int | None, _short("--max-images")] = None
    """Images of a class at most; a seeded random choice among them."""
    images: Annotated[int | None, _short("--images")] = None
    """Images in all at most; a seeded random choice that keeps at least one (min_images where possible) of each class."""
    tail: Annotated[float, _short("--tail")] = 0.0
    """Exponent of a long tail of the training split's classes: the n-th most frequent keeps n^-tail of the first one's images, of
    those that it has, and at least one; a seeded random choice among them. val and test stay as they are; 0: all are kept."""
    rule: Literal[1, 2] = 2
    """How random choices are made. 2: each choice is independent of the others and of the splits. 1: images that the split gave
    to test and val are chosen first, as in versions that record no rule; resumed runs and studies keep the rule they began with."""

    def __post_init__(self) -> None:
        require(self.min_images >= 1, f"subset.min_images is {self.min_images}; expected 1 or more")
        for name in ("classes", "max_images", "images"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"subset.{name} is {value}; expected 1 or more")
        require(
            self.classes is None or self.images is None or self.images >= self.classes,
            f"subset.images is {self.images}; expected at least one a class ({self.classes})",
        )
        require(0 <= self.tail <= 2, f"subset.tail is {self.tail}; expected 0 to 2")

    def keeps_all(self) -> bool:
        """Return whether nothing is left out."""
        return dataclasses.replace(self, rule=SubsetConfig.rule) == SubsetConfig()

    def is_random(self) -> bool:
        """Return whether any choice is random, so that seed and rule matter."""
        random_classes = self.classes is not None and self.choose == "random"
        return random_classes or self.max_images is not None or self.images is not None or self.tail > 0


def recorded_subset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a subset's mapping as a run, study or dataset recorded it, with its rule: a record without one is of rule 1."""
    return {"rule": 1, **values}


def resumed_subset(subset: SubsetConfig, recorded: SubsetConfig) -> tuple[SubsetConfig, str]:
    """Return the subset of a command that resumes what was recorded, by the recorded rule, and a note where that matters.

    The note is empty where the rules choose alike, or where more than the rule differs, which is for the caller to refuse.
    """
    resumed = dataclasses.replace(subset, rule=recorded.rule)
    if subset == resumed or resumed != recorded:
        return subset, ""
    return resumed, RULE_NOTE.format(recorded=recorded.rule, rule=subset.rule) if resumed.is_random() else ""


def with_recorded_subset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded config's mapping with the rule of its subset."""
    subset = values.get("subset")
    return {**values, "subset": recorded_subset(subset)} if isinstance(subset, Mapping) else dict(values)
