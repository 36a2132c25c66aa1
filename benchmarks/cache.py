"""The node's cache: decoding from planes compared with JPEGs, bytes read in a second epoch, pixels, and accuracy.

Run: python benchmarks/cache.py [--only PART] [--images 3000] [--rounds 5] [--seconds 4] [--seeds 3] [--folder DIR].
JPEGs of 384 x 288 in a packed dataset. Parts:

- limit: images/s of random crops in memory, by as many threads as CPUs, from JPEGs and from planes in turns.
- loader: images/s of the loader without a cache and with a warm cache in each format, in turns.
- trials: images/s of two training processes at the same time, ShuffleNet x0.5 at 64 px, as trials of a study on one node,
without a cache and with a warm cache in each format, in turns. Steady epochs count.
- bucket: bytes that a second epoch reads from an S3 server, counted by a proxy.
- pixels: mean absolute difference of the crops from planes and from JPEGs, levels of 255.
- accuracy: validation top-1 of ShuffleNet x0.5 at 64 px with each format, over seeds.

Ratios are medians over the rounds. The last line is JSON, saved to benchmarks/results/cache.json if all parts ran.
"""

import argparse
import csv
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark-secret", AWS_REGION="us-east-1")

import numpy as np
from ingest import SHARD_MIB, draw_folders

from landmark.commands.prepare import prepare
from landmark.config import (
    AugmentConfig,
    ComputeConfig,
    FoldersConfig,
    LoaderConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    PrepareConfig,
    ScheduleConfig,
    SplitConfig,
    TrainConfig,
)
from landmark.cpus import available_cpus
from landmark.data.arrow_binary import values
from landmark.data.cache.planes import to_planes
from landmark.data.cache.split_cache import stored_side
from landmark.data.dataset import PackedDataset
from landmark.data.loading.decoders import TableDecoder
from landmark.data.loading.jpeg import decode_batch
from landmark.data.loading.loader import Loader
from landmark.data.loading.plan import RowGroups
from landmark.data.loading.reader import RowGroupReader
from landmark.storage import locate
from landmark.training.run import run_training
from tests.support.proxy import Proxy
from tests.support.seaweed import Seaweed, free_ports

BATCH = 64
SIZES = (224, 64)
FORMATS = ("none", "jpeg", "yuv420")
CACHE_GIB = 8.0
TRIALS = 2
MODEL, MODEL_SIZE, EPOCHS = "shufflenet_v2_x0_5", 64, 12


def pack(folder: Path, output: str) -> None:
    """Pack the images without re-encoding, with enough validation images to compare accuracies."""
    prepare(
        PrepareConfig(
            output=output,
            source="folders",
            folders=FoldersConfig(path=str(folder)),
            split=SplitConfig(val=0.2, test=0.02),
            packing=PackingConfig(shard_mib=SHARD_MIB),
        )
    )


def images_of(dataset: PackedDataset) -> list[memoryview]:
    """Return the JPEGs of the training split, in memory."""
    groups = RowGroups.of(dataset, "train")
    reader = RowGroupReader(dataset.location, dataset.split("train").shards)
    tables = [reader.read(groups.task(index, 0, int(rows))) for index, rows in enumerate(groups.rows)]
    return [image for table in tables for image in values(table["image"])]


def planes_of(jpegs: list[memoryview], size: int, short_side: int) -> list[bytes | memoryview]:
    """Return the images as the cache stores them for training at a size."""
    side = stored_side(LoaderConfig(image_size=size), AugmentConfig(), short_side)
    with ThreadPoolExecutor(available_cpus()) as pool:
        return list(pool.map(lambda image: to_planes(image, side), jpegs))


def decoding_rate(images: list[Any], size: int, seconds: float) -> float:
    """Return the images/s of random crops by threads, without anything else."""
    threads = available_cpus()

    def work(first: int) -> int:
        decoder, done = TableDecoder(AugmentConfig(), 0), 0
        parts = [images[start : start + BATCH] for start in range(first * BATCH, len(images), threads * BATCH)]
        ends, epoch = time.perf_counter() + seconds, 0
        while True:
            epoch += 1
            for part in parts:
                decoder.decode_rows(part, np.arange(len(part)), epoch, decoder.memory(len(part), size))
                done += len(part)
                if time.perf_counter() > ends:
                    return done

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - start)


def measure_limit(dataset: PackedDataset, rounds: int, seconds: float) -> dict[str, float]:
    """Return the rates of both formats and their ratio, per image size."""
    figures: dict[str, float] = {}
    jpegs = images_of(dataset)
    for size in SIZES:
        planes = planes_of(jpegs, size, dataset.manifest.short_side)
        ratios, rates = [], []
        for number in range(rounds):
            turn = [decoding_rate(jpegs, size, seconds), decoding_rate(planes, size, seconds)]
            ratios.append(turn[1] / turn[0])
            rates.append(turn)
            print(f"round {number + 1}, {size} px: JPEG {turn[0]:,.0f}, planes {turn[1]:,.0f} images/s", flush=True)
        suffix = "" if size == SIZES[0] else f"_{size}px"
        figures[f"yuv_over_jpeg_limit{suffix}"] = statistics.median(ratios)
        figures[f"jpeg_limit_images_per_s{suffix}"] = statistics.median(rate[0] for rate in rates)
        figures[f"yuv_limit_images_per_s{suffix}"] = statistics.median(rate[1] for rate in rates)
        figures[f"yuv_over_jpeg_bytes{suffix}"] = sum(map(len, planes)) / sum(map(len, jpegs))
    return figures


def loader_config(size: int, kind: str, folder: Path) -> LoaderConfig:
    """Return the config of a loader with a cache, or without one."""
    config = LoaderConfig(image_size=size, batch_size=BATCH, stream="thread")
    if kind == "none":
        return config
    return dataclasses.replace(config, cache=str(folder / "cache"), cache_gib=CACHE_GIB, cache_format=kind)


def loader_rate(dataset: PackedDataset, config: LoaderConfig, seconds: float) -> float:
    """Return the images/s of the loader after its first batch."""
    epochs = range(1, 100_000)
    with Loader(dataset, "train", config, augment=AugmentConfig(), epochs=epochs) as loader:
        batches = (batch for epoch in epochs for batch in loader.epoch(epoch))
        next(batches)
        start, images = time.perf_counter(), 0
        for batch in batches:
            images += len(batch.images)
            if time.perf_counter() - start > seconds:
                return images / (time.perf_counter() - start)
    raise RuntimeError("no images")


def measure_loader(dataset: PackedDataset, rounds: int, seconds: float, folder: Path) -> dict[str, float]:
    """Return the loader's rate with each format, per image size. The caches are filled first."""
    figures: dict[str, float] = {}
    for size in SIZES:
        configs = {kind: loader_config(size, kind, folder) for kind in FORMATS}
        rates: dict[str, list[float]] = {kind: [] for kind in FORMATS}
        for kind in FORMATS[1:]:
            start = time.perf_counter()
            with Loader(dataset, "train", configs[kind], augment=AugmentConfig()) as loader:
                images = sum(len(batch.images) for batch in loader.epoch(1))
            figures[f"loader_{kind}_first_{size}px"] = images / (time.perf_counter() - start)
        for number in range(rounds):
            for kind in FORMATS:
                rates[kind].append(loader_rate(dataset, configs[kind], seconds))
            line = ", ".join(f"{kind} {rates[kind][-1]:,.0f}" for kind in FORMATS)
            print(f"round {number + 1}, loader at {size} px: {line} images/s", flush=True)
        figures |= {f"loader_{kind}_{size}px": statistics.median(rates[kind]) for kind in FORMATS}
    return figures


def trial_rate(config: TrainConfig) -> float:
    """Train in this process and return the images/s of a steady epoch, without validation."""
    run = run_training(config)
    with (locate(run.run) / "history.csv").local_path().open() as file:  # type: ignore[union-attr]
        rates = [float(row["images_per_s"]) for row in csv.DictReader(file)]
    return statistics.median(rates[1:])


def measure_trials(dataset: PackedDataset, rounds: int, folder: Path) -> dict[str, float]:
    """Return the rate of two training processes together with each format, and the ratios to no cache."""
    rates: dict[str, list[float]] = {kind: [] for kind in FORMATS}
    os.environ["OMP_NUM_THREADS"] = str(max(1, available_cpus() // TRIALS))  # of the processes that start here
    with ProcessPoolExecutor(TRIALS, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number in range(rounds):
            for kind in FORMATS:
                loader = dataclasses.replace(loader_config(MODEL_SIZE, kind, folder), decode_threads=1)
                config = TrainConfig(
                    dataset=dataset.uri,
                    output=str(folder / "trials"),
                    epochs=4,
                    model=ModelConfig(backbone=MODEL),
                    optimizer=OptimizerConfig(name="adamw", lr=0.004),
                    compute=ComputeConfig(amp="off"),
                    loader=loader,
                    tensorboard=False,
                )
                configs = [dataclasses.replace(config, name=f"{kind}-{number}-{trial}") for trial in range(TRIALS)]
                rates[kind].append(sum(pool.map(trial_rate, configs)))
            line = ", ".join(f"{kind} {rates[kind][-1]:,.0f}" for kind in FORMATS)
            print(f"round {number + 1}, {TRIALS} trials of {MODEL} at {MODEL_SIZE} px: {line} images/s", flush=True)
    figures = {f"trials_{kind}_images_per_s": statistics.median(found) for kind, found in rates.items()}
    for kind in FORMATS[1:]:
        ratios = [one / other for one, other in zip(rates[kind], rates["none"], strict=True)]
        figures[f"trials_{kind}_over_none"] = statistics.median(ratios)
    return figures


def measure_bucket(dataset: Path, folder: Path) -> dict[str, float]:
    """Return the bytes that the first and the second epoch read from an S3 server, and a second run's."""
    ports = free_ports(4)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{ports[3]}"
    server = Seaweed(folder, ports)
    server.start()
    try:
        for path in dataset.rglob("*"):
            if path.is_file():
                (locate(server.uri("dataset")) / str(path.relative_to(dataset))).upload(path)
        with Proxy(ports[3]) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
            counts = []
            for seed in (0, 1):
                opened = PackedDataset.open(server.uri("dataset"))
                config = loader_config(224, "jpeg", folder / "bucket")
                with Loader(opened, "train", config, augment=AugmentConfig(), seed=seed) as loader:
                    before = proxy.bytes_down
                    for _ in loader.epoch(1):
                        pass
                    counts.append(proxy.bytes_down - before)
    finally:
        server.stop()
    print(f"bytes read from the bucket: first epoch {counts[0]:,}, second epoch {counts[1]:,}", flush=True)
    return {"first_epoch_bucket_bytes": counts[0], "second_epoch_bucket_bytes": counts[1]}


def measure_pixels(dataset: PackedDataset) -> dict[str, float]:
    """Return the mean absolute difference of crops from planes and from JPEGs."""
    figures = {}
    jpegs = images_of(dataset)[:500]
    visits = np.arange(len(jpegs))
    for size in SIZES:
        planes = planes_of(jpegs, size, dataset.manifest.short_side)
        pixels = [
            decode_batch(images, visits, size, augment=AugmentConfig())[0].astype(np.int16)
            for images in (jpegs, planes)
        ]
        figures[f"mean_pixel_difference_{size}px"] = float(np.abs(pixels[0] - pixels[1]).mean())
    print(", ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)
    return figures


def accuracies(dataset: str, folder: Path, seeds: int) -> Iterator[tuple[str, float]]:
    """Train with each format and seed, and yield the best validation top-1."""
    for seed in range(seeds):
        for kind in ("none", "yuv420"):
            config = TrainConfig(
                dataset=dataset,
                output=str(folder / "runs"),
                name=f"{kind}-{seed}",
                seed=seed,
                epochs=EPOCHS,
                model=ModelConfig(backbone=MODEL),
                optimizer=OptimizerConfig(name="adamw", lr=0.004),
                schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
                compute=ComputeConfig(amp="off"),
                loader=loader_config(MODEL_SIZE, kind, folder),
                tensorboard=False,
            )
            yield kind, run_training(config).best["val_top1"]


def measure_accuracy(dataset: str, folder: Path, seeds: int) -> dict[str, float]:
    """Return mean and sample standard deviation of the validation top-1 with each format."""
    found: dict[str, list[float]] = {"none": [], "yuv420": []}
    for kind, top1 in accuracies(dataset, folder, seeds):
        found[kind].append(top1)
        print(f"{kind}: val top-1 {top1:.2%}", flush=True)
    differences = [planes - jpeg for jpeg, planes in zip(found["none"], found["yuv420"], strict=True)]
    return {
        "jpeg_top1": statistics.mean(found["none"]),
        "jpeg_top1_sd": statistics.stdev(found["none"]),
        "yuv_top1": statistics.mean(found["yuv420"]),
        "yuv_top1_sd": statistics.stdev(found["yuv420"]),
        "yuv_minus_jpeg_top1": statistics.mean(differences),
    }


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("limit", "loader", "trials", "bucket", "pixels", "accuracy"))
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder for the synthetic images, to reuse them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        if not (folder / "dataset" / "manifest.json").exists():
            draw_folders(folder / "images", arguments.images)
            pack(folder / "images", str(folder / "dataset"))
        dataset = PackedDataset.open(str(folder / "dataset"))
        parts = {
            "limit": lambda: measure_limit(dataset, arguments.rounds, arguments.seconds),
            "loader": lambda: measure_loader(dataset, arguments.rounds, arguments.seconds, Path(name)),
            "trials": lambda: measure_trials(dataset, arguments.rounds, Path(name)),
            "bucket": lambda: measure_bucket(folder / "dataset", Path(name)),
            "pixels": lambda: measure_pixels(dataset),
            "accuracy": lambda: measure_accuracy(dataset.uri, Path(name), arguments.seeds),
        }
        figures: dict[str, float] = {}
        for part, measured in parts.items():
            if arguments.only in (None, part):
                figures |= measured()
    line = json.dumps({key: round(value, 3) for key, value in figures.items()})
    if arguments.only is None:
        Path(__file__).with_name("results").joinpath("cache.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
