"""The photographs for training benchmarks: `monuments` in LANDMARK_TEST_DATA, packed."""

import os
import sys
from pathlib import Path

from landmark.commands.prepare import prepare
from landmark.config import FoldersConfig, PackingConfig, PrepareConfig, SubsetConfig


def photographs(name: str) -> Path:
    """Return the folder of that name in LANDMARK_TEST_DATA. Exits if it does not exist."""
    photos = Path(os.environ.get("LANDMARK_TEST_DATA", "../shared/data")) / name
    if not photos.is_dir():
        sys.exit(f"no photographs in {photos}; set LANDMARK_TEST_DATA")
    return photos


def pack_monuments(folder: Path, short_side: int, subset: SubsetConfig | None = None) -> str:
    """Pack the photographs, or a subset, at a short side (pixels), unless already done. Returns the dataset's path."""
    photos = photographs("monuments")
    if not (folder / "manifest.json").exists():
        prepare(
            PrepareConfig(
                output=str(folder),
                source="folders",
                folders=FoldersConfig(path=str(photos), groups=str(photos / "groups.csv")),
                subset=subset or SubsetConfig(),
                packing=PackingConfig(short_side=short_side),
            )
        )
    return str(folder)
