"""The reference subset end to end at full size: 81,300 images of 100 classes as GLDv2 tars, packed to S3, read once.

Run: python benchmarks/reference.py [--images 81300]. The images are synthetic (128 px), the S3 server runs on this
machine, and reading uses training's input path without training. The last line is JSON, saved to
benchmarks/results/reference.json.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(
    AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark-secret", AWS_REGION="us-east-1", OMP_NUM_THREADS="2"
)

import numpy as np
from peak import Peak

from landmark.commands.prepare import prepare
from landmark.config import (
    AugmentConfig,
    Gldv2Config,
    LoaderConfig,
    PackingConfig,
    PrepareConfig,
    SubsetConfig,
    SyntheticConfig,
)
from landmark.data.dataset import PackedDataset
from landmark.data.loading.loader import Loader
from landmark.data.sources.gldv2 import image_path
from landmark.data.synthetic import plan_images, render_image
from landmark.data.synthetic.gldv2_files import write_gldv2, write_tar
from tests.support.seaweed import Seaweed, free_ports

TARS = 20
BATCH = 256


def write_files(folder: Path, config: SyntheticConfig) -> None:
    """Write CSV files and tars, with two processes."""
    rows = plan_images(config, 0).to_pylist()
    write_gldv2(folder, config, tars=1, left_out=frozenset(row["image_id"] for row in rows))
    with multiprocessing.Pool() as pool:
        pool.starmap(_write_tar, [(folder, number, rows[number::TARS], config) for number in range(TARS)], chunksize=1)


def _write_tar(folder: Path, number: int, rows: list[dict], config: SyntheticConfig) -> None:
    names = (image_path(row["image_id"]).removeprefix("train/") for row in rows)
    write_tar(folder, number, ((name, render_image(row, config, 0)) for name, row in zip(names, rows, strict=True)))


def read_once(dataset: PackedDataset) -> tuple[int, float, float]:
    """Read an epoch as training does.

    Returns images, seconds, and seconds to the first batch. Checks that each image was read once.
    """
    rows = dataset.split("train").rows
    uses = np.zeros(rows, dtype=np.int64)
    start, first = time.perf_counter(), 0.0
    with Loader(
        dataset, "train", LoaderConfig(image_size=112, batch_size=BATCH, stream="thread"), augment=AugmentConfig()
    ) as loader:
        for batch in loader.epoch(1):
            first = first or time.perf_counter() - start
            np.add.at(uses, batch.samples, 1)
    if not (uses == 1).all():
        raise SystemExit(f"{(uses == 0).sum()} samples never read, {(uses > 1).sum()} more than once")
    return rows, time.perf_counter() - start, first


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=81_300)
    images = parser.parse_args().images
    figures: dict[str, float] = {"images": images}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        write_files(folder / "gldv2", SyntheticConfig(classes=100, images=images, image_size=128))
        figures["draw_s"] = time.perf_counter() - start
        ports = free_ports(4)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{ports[3]}"
        server = Seaweed(folder, ports)
        server.start()
        try:
            peak = Peak(os.getpid(), leave_out=server.process.pid if server.process else None)
            result = prepare(
                PrepareConfig(
                    output=server.uri("reference"),
                    source="gldv2",
                    gldv2=Gldv2Config(path=str(folder / "gldv2"), attribution=True),
                    subset=SubsetConfig(classes=100, images=images),
                    packing=PackingConfig(short_side=128),
                )
            )
            figures |= {"pack_s": result.seconds, "pack_images_per_s": result.packed / result.seconds}
            figures |= {"pack_peak_mib": peak.stop(), "packed": result.packed, "rejected": sum(result.rejects.values())}
            peak = Peak(os.getpid(), leave_out=server.process.pid if server.process else None)
            rows, seconds, first = read_once(PackedDataset.open(server.uri("reference")))
            figures |= {"read_images": rows, "read_s": seconds, "read_images_per_s": rows / seconds}
            figures |= {"first_batch_s": first, "read_peak_mib": peak.stop(), "seen_once": rows}
        finally:
            server.stop()
    for key, value in figures.items():
        print(f"{key:20} {value:>12,.1f}")
    line = json.dumps({key: round(value, 2) for key, value in figures.items()})
    Path(__file__).with_name("results").joinpath("reference.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
