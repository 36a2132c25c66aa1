"""`landmark prepare`: images and labels become a packed dataset."""

import sys
from collections.abc import Sequence

from landmark.cli import run_verb
from landmark.config import PrepareConfig
from landmark.data.packing.gldv2_source import gldv2_source
from landmark.data.packing.job import PackingResult, pack_dataset
from landmark.data.packing.sources import Source, SyntheticSource, folder_source
from landmark.progress import clock
from landmark.runtime import connect
from landmark.storage import locate


def prepare(config: PrepareConfig) -> PackingResult:
    """Pack a dataset and say where it lies."""
    source = _source(config)
    connect(config.cluster)
    result = pack_dataset(locate(config.output), source, config)
    _tell(result)
    return result


def _source(config: PrepareConfig) -> Source:
    if config.source == "folders" and config.folders.path is not None:
        return folder_source(config.folders.path, config.folders.groups)
    if config.source == "gldv2":
        return gldv2_source(config.gldv2, clean=config.subset.clean)
    return SyntheticSource(config.synthetic, config.seed)


def _tell(result: PackingResult) -> None:
    for note in result.notes:
        print(f"note: {note}")
    manifest = result.dataset.manifest
    if result.packed:
        rate = result.packed / max(result.seconds, 1e-9)
        print(f"packed {result.packed:,} images in {clock(result.seconds)} ({rate:,.0f} images/s)")
    else:
        print("nothing to do: the dataset is there already")
    rows = ", ".join(f"{name} {entry.rows:,}" for name, entry in manifest.splits.items())
    print(f"{manifest.classes} classes; images: {rows}; {result.bytes_out / 2**20:,.1f} MiB")
    if result.rejects:
        print("rejected: " + ", ".join(f"{count} {reason}" for reason, count in result.rejects.items()))
    where = result.dataset.location
    print(f"dataset: {where}  next: landmark tune --dataset {where}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit code."""
    return run_verb(PrepareConfig, prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
