"""`landmark prepare`: packs images and labels into a dataset, or verifies a dataset."""

import time

import numpy as np

from landmark.config import PrepareConfig, UserError, to_yaml
from landmark.data.dataset import PackedDataset
from landmark.data.packing.gldv2_source import gldv2_source
from landmark.data.packing.job import PackingResult, pack_dataset
from landmark.data.packing.repack import DatasetSource
from landmark.data.packing.sources import Source, SyntheticSource, folder_source
from landmark.data.verify import verify_dataset
from landmark.progress import clock
from landmark.reporting.plots import classes_png
from landmark.runtime import connect
from landmark.storage import locate


def prepare(config: PrepareConfig) -> PackingResult | None:
    """Pack a dataset and print its location, or verify a finished one."""
    if config.verify:
        verify(config.output)
        return None
    source = _source(config)
    connect(config.cluster)
    result = pack_dataset(locate(config.output), source, config)
    if result.packed:
        (locate(config.output) / "config.yaml").write_text(to_yaml(config))
    _print_result(result)
    return result


def verify(uri: str) -> None:
    """Verify a finished dataset and print one line per problem; raises UserError if there are problems."""
    dataset = PackedDataset.open(uri)
    start, problems = time.monotonic(), 0
    for problem in verify_dataset(dataset):
        print(problem, flush=True)
        problems += 1
    if problems:
        raise UserError(f"{uri}: {problems} problems, listed above; restore these files, or prepare the dataset again")
    entries = dataset.manifest.splits.values()
    shards = [shard for entry in entries for shard in entry.shards]
    print(
        f"{uri}: {sum(entry.rows for entry in entries):,} images in {len(shards):,} shards, "
        f"{sum(shard.bytes for shard in shards) / 2**20:,.1f} MiB, verified in {clock(time.monotonic() - start)}: no problems"
    )


def _source(config: PrepareConfig) -> Source:
    for path in (config.folders.path, config.gldv2.path):
        if path is not None and locate(path).uri.rstrip("/") == locate(config.output).uri.rstrip("/"):
            raise UserError(
                f"{config.output}: contains the source images; choose another --output, such as a subfolder"
            )
    if config.source == "synthetic":
        return SyntheticSource(config.synthetic, config.seed)
    if config.source == "gldv2":
        return gldv2_source(config.gldv2, clean=config.subset.clean)
    if config.source == "folders":
        assert config.folders.path is not None
        return folder_source(config.folders.path, config.folders.groups, locate(config.output))
    assert config.dataset.path is not None
    return DatasetSource(locate(config.dataset.path).uri, config.subset, config.seed)


def _print_result(result: PackingResult) -> None:
    for note in result.notes:
        print(f"note: {note}")
    manifest = result.dataset.manifest
    if result.packed:
        rate = result.packed / max(result.seconds, 1e-9)
        print(
            f"packed {result.packed:,} images in {clock(result.seconds)} ({rate:,.0f} images/s), "
            f"{result.bytes_in / 2**20:,.1f} MiB read"
        )
    else:
        print("nothing to do: the dataset already exists")
    rows = ", ".join(f"{name} {entry.rows:,}" for name, entry in manifest.splits.items())
    print(f"{manifest.classes:,} classes; images: {rows}; {result.bytes_out / 2**20:,.1f} MiB written")
    where = result.dataset.location
    _print_classes(result.dataset)
    if result.rejects:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.rejects.items())
        print(f"rejected: {reasons}; each is listed in {where / 'rejects.parquet'}")
    print(f"dataset: {where}  next: {next_command(result)}")


LARGE = 50_000
"""Number of training images from which the suggested search space is the one for GPUs."""


def next_command(result: PackingResult) -> str:
    """Return the suggested next command for a dataset of this size. `train` comes first: with start weights, one run is
    better than a short search without them."""
    where, images = result.dataset.location, result.dataset.manifest.splits["train"].rows
    return f"landmark train {where}, or landmark tune {where} --space {'modern' if images >= LARGE else 'small'}"


def _print_classes(dataset: PackedDataset) -> None:
    """Print the number of images per class, and write a plot of it to the dataset's folder."""
    counts, names = dataset.labels["images"].to_numpy(), dataset.class_names
    most, least = int(counts.argmax()), int(counts.argmin())
    picture = dataset.location / "classes.png"
    picture.write_bytes(classes_png(counts, names))
    print(
        f"images per class: maximum {counts[most]:,} ({names[most]}), median {np.median(counts):,.0f}, "
        f"minimum {counts[least]:,} ({names[least]}); {picture}"
    )
