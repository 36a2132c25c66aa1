"""The photographs that benchmarks train on: `monuments` in LANDMARK_TEST_DATA, packed."""

import os
import sys
from pathlib import Path

from landmark.config import FoldersConfig, PackingConfig, PrepareConfig, SubsetConfig
from landmark.prepare import prepare


def pack_monuments(folder: Path, short_side: int, subset: SubsetConfig | None = None) -> str:
    """Pack the photographs, or a subset, at a short side (pixels), unless that is done; returns the dataset's path."""
    photos = Path(os.environ.get("LANDMARK_TEST_DATA", "../shared/data")) / "monuments"
    if not photos.is_dir():
        sys.exit(f"no photographs in {photos}; set LANDMARK_TEST_DATA")
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
