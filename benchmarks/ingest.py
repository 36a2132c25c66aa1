"""Input pipeline throughput compared with its upper bound and with other libraries, from a disk and from S3.

Run: python benchmarks/ingest.py [--images 5900] [--rounds 5] [--seconds 6] [--folder DIR]. JPEGs of 384 x 288, random
crops to 224. The upper bound is the same decode function over the same images in memory, with as many threads or
processes as there are CPUs, whichever is faster. The methods alternate, each in its own process
(benchmarks/ingest_ways.py, and ingest_peers.py for other libraries, which read the same images from the disk in their
own format). S3 is a server on this machine: directly, and behind proxies that make it a bucket far away
(benchmarks/far_bucket.py). Figures are medians of the rounds. The last line is JSON, saved to
benchmarks/results/ingest.json.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))
os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark-secret", AWS_REGION="us-east-1")

import numpy as np
import simplejpeg
from ingest_ways import PEERS, SERVERS

from landmark.commands.prepare import prepare
from landmark.config import FoldersConfig, PackingConfig, PrepareConfig, SplitConfig, SyntheticConfig
from landmark.data.dataset import PackedDataset
from landmark.data.synthetic import plan_images, render_image
from landmark.storage import locate
from tests.support.seaweed import Seaweed, free_ports

CLASSES, WIDTH, HEIGHT, QUALITY = 16, 384, 288, 94
SHARD_MIB = 20
NAMES = {
    "limit_threads": "upper bound: threads, no Ray",
    "limit_processes": "upper bound: processes, no Ray",
    "dataloader": "DataLoader, Pillow, image folder",
    "thread": "landmark, read by a thread",
    "ray_data": "landmark, read by a Ray Data stream",
    "ray_actors": "the same, read by a Ray actor",
    "ray_decoders": "landmark, decoded by a Ray Data stream",
    "s3 thread": "landmark from S3, read by a thread",
    "s3 ray_data": "landmark from S3, read by a Ray Data stream",
    "far25 thread": "landmark from S3 with 25 ms and 90 MB/s",
    "far100 thread": "landmark from S3 with 100 ms and 50 MB/s",
    "far100 ray_data": "the same, read by a Ray Data stream",
    "torchvision_loader": "DataLoader, torchvision, image folder",
    "webdataset_loader": "WebDataset, torchvision",
    "streaming_loader": "MosaicML Streaming, torchvision",
    "spdl_loader": "SPDL, image files",
    "textbook_ray_data": "Ray Data as in its guide",
}
FAR = {"far25": (25, 90), "far100": (100, 50)}
"""Latency in ms per request and MB/s per connection."""
FOLDERS = {
    "dataloader": "images",
    "torchvision_loader": "images",
    "spdl_loader": "images",
    "textbook_ray_data": "images",
}
FOLDERS |= {"webdataset_loader": "webdataset", "streaming_loader": "streaming"}
"""Folder of a method that does not read a packed dataset."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a method reads."""

    uri: str
    endpoint: str = ""
    pids: tuple[int, ...] = ()
    """Processes of the server, whose CPU time a bucket far away would not take from this machine."""


def draw_folders(root: Path, images: int) -> None:
    """Draw class folders of photograph-like JPEGs."""
    config = SyntheticConfig(classes=CLASSES, images=images, image_size=WIDTH)
    rows = plan_images(config, 0).to_pylist()
    with multiprocessing.Pool() as pool:
        pool.starmap(_draw, [(row, config, root) for row in rows], chunksize=50)


def _draw(row: dict, config: SyntheticConfig, root: Path) -> None:
    square = simplejpeg.decode_jpeg(render_image(row, config, 0))
    top = (WIDTH - HEIGHT) // 2
    pixels = np.ascontiguousarray(square[top : top + HEIGHT])
    path = root / row["landmark_id"] / f"{row['image_id']}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling="420"))


def pack(folder: Path, output: str) -> None:
    """Pack the images without re-encoding, nearly all into the training split."""
    prepare(
        PrepareConfig(
            output=output,
            source="folders",
            folders=FoldersConfig(path=str(folder)),
            split=SplitConfig(val=0.02, test=0.02),
            packing=PackingConfig(shard_mib=SHARD_MIB),
        )
    )


def duplicate_shards(dataset: Path, target: Path) -> None:
    """Create a dataset with twice as many training images: each shard is in it twice."""
    shutil.copytree(dataset, target, copy_function=os.link)
    manifest = PackedDataset.open(str(dataset)).manifest
    train = manifest.splits["train"]
    doubled = dataclasses.replace(train, rows=2 * train.rows, shards=2 * train.shards)
    (target / "manifest.json").unlink()
    text = dataclasses.replace(manifest, splits=manifest.splits | {"train": doubled}).to_json()
    (target / "manifest.json").write_text(text)


def run(method: str, place: Place, seconds: float, python: str = sys.executable) -> dict[str, float]:
    """Run one method in its own process and return its figures."""
    command = [python, str(Path(__file__).with_name("ingest_ways.py")), method, place.uri, str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if place.pids:
        environment |= {SERVERS: " ".join(map(str, place.pids)), "AWS_ENDPOINT_URL": place.endpoint}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if ended.returncode:
        raise SystemExit(f"{method} failed:\n{ended.stderr}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def run_alternately(
    methods: list[str], places: dict[str, Place], rounds: int, seconds: float, peer_python: str
) -> dict[str, dict[str, float]]:
    """Run all methods alternately, several times. Returns the median of each figure per method."""
    found: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for number in range(rounds):
        for method in methods:
            where, _, way = method.rpartition(" ")
            place = places[where or FOLDERS.get(method, "local")]
            in_peer = method in PEERS and method != "textbook_ray_data"  # which only needs Ray
            found[method].append(run(way, place, seconds, peer_python if in_peer else sys.executable))
            figures = ", ".join(f"{key} {value:,.1f}" for key, value in found[method][-1].items())
            print(f"round {number + 1}: {NAMES[method]}: {figures}", flush=True)
    return {
        method: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for method, rows in found.items()
    }


@contextlib.contextmanager
def buckets(folder: Path, dataset: Path) -> Iterator[dict[str, Place]]:
    """Serve a dataset from S3, directly and behind proxies."""
    ports = free_ports(4)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{ports[3]}"
    server = Seaweed(folder, ports)
    server.start()
    proxies = []
    try:
        assert server.process is not None
        for path in dataset.rglob("*"):
            if path.is_file():
                (locate(server.uri("dataset")) / str(path.relative_to(dataset))).upload(path)
        found = {"s3": Place(server.uri("dataset"), os.environ["AWS_ENDPOINT_URL"], (server.process.pid,))}
        for name, (latency_ms, megabytes_per_s) in FAR.items():
            script = str(Path(__file__).with_name("far_bucket.py"))
            command = [sys.executable, script, str(ports[3]), str(latency_ms), str(megabytes_per_s)]
            proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            proxies.append(proxy)
            assert proxy.stdout is not None
            endpoint = f"http://127.0.0.1:{proxy.stdout.readline().strip()}"
            found[name] = Place(server.uri("dataset"), endpoint, (server.process.pid, proxy.pid))
        yield found
    finally:
        for proxy in proxies:
            proxy.terminate()
            proxy.wait()
        server.stop()


def summary(median: dict[str, dict[str, float]], once: float, doubled: float) -> dict[str, float | str]:
    """Return the figures to save."""
    limit = max(median["limit_threads"]["rate"], median["limit_processes"]["rate"])
    keys = {
        "local": "thread",
        "local_ray": "ray_data",
        "local_actors": "ray_actors",
        "decode_data": "ray_decoders",
        "s3": "s3 thread",
        "s3_ray": "s3 ray_data",
        **{name: f"{name} thread" for name in FAR},
        "far100_ray": "far100 ray_data",
    }
    over_limit = {f"{key}_over_limit": median[method]["rate"] / limit for key, method in keys.items()}
    # On this machine the S3 server uses CPUs that a remote bucket would not use, so the upper bound is lower here.
    cpus = len(os.sched_getaffinity(0))
    for key in ("s3", "s3_ray", *FAR, "far100_ray"):
        available = 1 - median[keys[key]]["server_cpus"] / cpus
        over_limit[f"{key}_over_limit_beside_server"] = over_limit[f"{key}_over_limit"] / available
    beside = {key: over_limit[f"{key}_over_limit_beside_server"] for key in ("s3", *FAR)}
    peers = {name: median[name]["rate"] for name in ("dataloader", *PEERS) if name in median}
    by_ray = [row for row in median.values() if "spilled_bytes" in row]
    return over_limit | {
        "slow_s3_over_direct_s3": min(beside[name] for name in FAR) / beside["s3"],
        "best_peer": max(peers, key=lambda name: peers[name]),
        "over_best_peer": median["thread"]["rate"] / max(peers.values()),
        "local_over_dataloader": median["thread"]["rate"] / median["dataloader"]["rate"],
        "first_batch_over_dataloader": median["thread"]["first_s"] / median["dataloader"]["first_s"],
        "first_batch_s": median["thread"]["first_s"],
        "ray_data_over_actors": median["ray_data"]["rate"] / median["ray_actors"]["rate"],
        "ray_data_first_batch_s": median["ray_data"]["first_s"],
        "spilled_bytes": sum(row["spilled_bytes"] for row in by_ray),
        "peak_store_mib": max(median[method]["peak_store_mib"] for method in ("ray_data", "ray_decoders")),
        "peak_store_once_mib": once,
        "peak_store_twice_mib": doubled,
        "limit_images_per_s": limit,
        "dataloader_images_per_s": median["dataloader"]["rate"],
    }


def main() -> None:
    """Print the figures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5900)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--folder", type=Path, help="folder for the synthetic images, to reuse them")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="Python of an environment with torch and the other libraries"
    )
    parser.add_argument("--no-peers", action="store_true", help="without other libraries than torch")
    arguments = parser.parse_args()
    methods = [name for name in NAMES if not (arguments.no_peers and name in PEERS)]
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        if not (folder / "double").exists():
            draw_folders(folder / "images", arguments.images)
            pack(folder / "images", str(folder / "dataset"))
            duplicate_shards(folder / "dataset", folder / "double")
        if not arguments.no_peers and not (folder / "streaming").exists():
            shards = len(PackedDataset.open(str(folder / "dataset")).split("train").shards)
            script = str(Path(__file__).with_name("ingest_peers.py"))
            subprocess.run([arguments.peer_python, script, str(folder), str(shards)], check=True)
        places = {kind: Place(str(folder / kind)) for kind in ("images", "webdataset", "streaming")}
        places["local"] = Place(str(folder / "dataset"))
        with buckets(Path(name), folder / "dataset") as far:
            median = run_alternately(methods, places | far, arguments.rounds, arguments.seconds, arguments.peer_python)
        sizes = [run("ray_data", Place(str(folder / uri)), 2 * arguments.seconds) for uri in ("dataset", "double")]
    figures = summary(median, *(size["peak_store_mib"] for size in sizes))
    print(f"\n{'':40}{'first batch, s':>15}{'images/s':>10}{'of the bound':>14}")
    for method, row in median.items():
        first = f"{row['first_s']:.1f}" if "first_s" in row else "-"
        print(f"{NAMES[method]:40}{first:>15}{row['rate']:10,.0f}{row['rate'] / figures['limit_images_per_s']:14.2f}")
    line = json.dumps({key: value if isinstance(value, str) else round(value, 3) for key, value in figures.items()})
    Path(__file__).with_name("results").joinpath("ingest.json").write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
