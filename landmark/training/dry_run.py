"""`landmark train --dry-run`: the steps of a run, and the cost and benefit of a cache in each format."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from landmark.config import TrainConfig
from landmark.cpus import available_cpus
from landmark.data.arrow_binary import values
from landmark.data.cache.format import CacheSizes, cache_sizes, too_large
from landmark.data.cache.planes import to_planes
from landmark.data.cache.split_cache import GIB, stored_side
from landmark.data.dataset import PackedDataset
from landmark.data.loading.decoders import TableDecoder
from landmark.data.loading.plan import RowGroups, training_steps
from landmark.data.loading.reader import RowGroupReader
from landmark.data.subset_view import open_dataset
from landmark.data.threads import DaemonPool
from landmark.table import aligned

SAMPLE_IMAGES = 512
"""Minimum number of images that are decoded for the rates, if the dataset has that many."""
RATE_S = 1.0
"""Seconds for which each format is decoded."""
PART_ROWS = 16
"""Images that a thread decodes at a time."""


def dry_run_text(config: TrainConfig) -> str:
    """Return the steps of a run, and each format's size and decoding rate, as text.

    It reads some images and decodes them on this machine, which takes a few seconds. Raises UserError if the dataset
    cannot be read.
    """
    dataset = open_dataset(config.dataset, config.subset, config.subset_seed)
    rows = {split: dataset.split(split).rows for split in ("train", "val")}
    _, batch_size = config.shape(config.epochs)
    steps = training_steps(rows["train"], config.workers.most, batch_size)
    sizes = cache_sizes(dataset, config.loader, {"train": config.augment, "val": None})
    threads = config.loader.decode_threads or available_cpus()
    jpeg, yuv420 = decoding_rates(dataset, config, threads)
    lines = [
        f"{rows['train']:,} training images of {dataset.num_classes:,} classes, {rows['val']:,} validation images",
        f"{config.length}{', epochs' if config.limit_s else ''} of {steps:,} steps, {batch_size} images per step",
        *_table(sizes, jpeg, yuv420, threads),
        "Trials and runs of a node share a cache. The rates are those of this machine, without reading and training.",
    ]
    if config.loader.cache_gib is not None and config.loader.cache_format == "yuv420":
        gib = config.loader.cache_gib
        lines += [too_large(sizes, gib)] if sizes.yuv420 > gib * GIB else []
    elif config.loader.cache is None:
        lines.append(f"to decode images only once: --cache FOLDER --cache-gib {_gib(sizes)} --cache-format yuv420")
    return "\n".join(lines)


def decoding_rates(dataset: PackedDataset, config: TrainConfig, threads: int) -> tuple[float, float]:
    """Return the images/s of random crops from JPEGs and from planes, in memory, measured in turns."""
    jpegs = _sample(dataset)
    side = stored_side(config.loader, config.augment, dataset.manifest.short_side)
    with DaemonPool(threads, "landmark-decode") as pool:
        planes = [call.result() for call in [pool.submit(to_planes, image, side) for image in jpegs]]
        measured: list[list[float]] = [[], []]
        for _ in range(2):
            measured[0].append(_rate(jpegs, config, pool, threads))
            measured[1].append(_rate(planes, config, pool, threads))
    return max(measured[0]), max(measured[1])


def _sample(dataset: PackedDataset) -> list[memoryview]:
    """Return JPEGs of row groups that are spread over the training split."""
    groups = RowGroups.of(dataset, "train")
    reader = RowGroupReader(dataset.location, dataset.split("train").shards)
    count = -(-SAMPLE_IMAGES // dataset.manifest.row_group_rows)
    images: list[memoryview] = []
    for index in np.unique(np.linspace(0, len(groups.rows) - 1, count).astype(np.int64)).tolist():
        table = reader.read(groups.task(index, 0, int(groups.rows[index])))
        images += values(table.filter(pc.is_null(table["fault"]))["image"])
    return images


def _rate(images: Sequence[bytes | memoryview], config: TrainConfig, pool: DaemonPool, threads: int) -> float:
    decoder = TableDecoder(config.augment, config.seed)
    visits = np.arange(len(images))

    def decode(first: int) -> int:
        done, place, ends = 0, first * PART_ROWS, time.perf_counter() + RATE_S / 2
        while time.perf_counter() < ends:
            part = slice(place % len(images), place % len(images) + PART_ROWS)
            pixels = decoder.memory(len(images[part]), config.loader.image_size)
            decoder.decode_rows(images[part], visits[part], 1, pixels)
            done, place = done + len(pixels), place + threads * PART_ROWS
        return done

    start = time.perf_counter()
    done = sum(call.result() for call in [pool.submit(decode, first) for first in range(threads)])
    return done / (time.perf_counter() - start)


def _table(sizes: CacheSizes, jpeg: float, yuv420: float, threads: int) -> list[str]:
    read = f"{sizes.jpeg / GIB:.2f} GiB"
    rows = [
        ["cache", "size, GiB", f"decoding by {threads} threads, images/s", "read from storage"],
        ["none", "-", f"{jpeg:,.0f}", f"{read} per epoch"],
        ["jpeg", f"{sizes.jpeg / GIB:.2f}", f"{jpeg:,.0f}", f"{read} once"],
        ["yuv420", f"{sizes.yuv420 / GIB:.2f}", f"{yuv420:,.0f}", f"{read} once"],
    ]
    return aligned(rows).splitlines()


def _gib(sizes: CacheSizes) -> str:
    """Return a limit for all decoded images."""
    return f"{max(1, -(-int(1.1 * sizes.yuv420) // GIB))}"
