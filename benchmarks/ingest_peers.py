"""Input pipelines of other libraries on the same images, run by benchmarks/ingest_ways.py.

Run: python benchmarks/ingest_peers.py FOLDER SHARDS. It packs FOLDER/images in the formats of WebDataset and MosaicML
Streaming. The libraries are not dependencies of landmark, and need other versions of some packages: install psutil, webdataset,
mosaicml-streaming, spdl (with the libraries of FFmpeg) and torch in an environment of their own, and pass its Python with --peer-python.

Each function yields the number of images of a batch: uint8 or float pixels of a random crop of 224, in the library's own
random order.
"""

import io
import itertools
import os
import random
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

SIZE, BATCH = 224, 64
SCALE = (0.35, 1.0)


def cpus() -> int:
    """Return the CPUs of this process, which each peer uses as its number of workers."""
    return len(os.sched_getaffinity(0))


def _crop_tensor(data: Any) -> Any:
    """Decode with torchvision (libjpeg-turbo), crop and resize as uint8."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return v2.RandomResizedCrop(SIZE, scale=SCALE, antialias=True)(pixels)


def torchvision_loader(folder: str) -> Generator[int, None, None]:
    """DataLoader over an image folder, with torchvision's decoder and uint8 pixels."""
    import torch
    from torchvision.datasets import ImageFolder

    def load(path: str) -> Any:
        return _crop_tensor(Path(path).read_bytes())

    loader = torch.utils.data.DataLoader(
        ImageFolder(folder, loader=load), batch_size=BATCH, shuffle=True, num_workers=cpus(), persistent_workers=True
    )
    for _ in itertools.count():
        yield from (len(images) for images, _ in loader)


def webdataset_loader(folder: str) -> Generator[int, None, None]:
    """WebDataset's tar shards with its shuffle buffer, and torchvision's decoder."""
    import torch
    import webdataset as wds

    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), nodesplitter=None, empty_check=False)
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(_crop_tensor, int)
        .batched(BATCH)
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=cpus(), persistent_workers=True)
    for _ in itertools.count():
        yield from (len(images) for images, _ in loader)


def write_webdataset(images: Path, folder: Path, shards: int) -> None:
    """Write an image folder as tar shards, in random order."""
    import webdataset as wds

    folder.mkdir()
    labels = {path.name: number for number, path in enumerate(sorted(images.iterdir()))}
    paths = _mixed(images)
    for number in range(shards):
        with wds.TarWriter(str(folder / f"{number:05d}.tar")) as writer:
            for path in paths[number::shards]:
                data = path.read_bytes()
                writer.write({"__key__": path.stem, "jpg": data, "cls": str(labels[path.parent.name])})


def streaming_loader(folder: str) -> Generator[int, None, None]:
    """MosaicML Streaming's shards on the local disk, with torchvision's decoder."""
    import torch
    from streaming import StreamingDataset

    class Crops(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            return _crop_tensor(row["image"]), row["label"]

    dataset = Crops(local=folder, shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=cpus(), persistent_workers=True)
    for _ in itertools.count():
        yield from (len(images) for images, _ in loader)


def write_streaming(images: Path, folder: Path) -> None:
    """Write an image folder as MosaicML Streaming shards, in random order."""
    from streaming import MDSWriter

    labels = {path.name: number for number, path in enumerate(sorted(images.iterdir()))}
    with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}, size_limit=20 << 20) as writer:
        for path in _mixed(images):
            writer.write({"image": path.read_bytes(), "label": labels[path.parent.name]})


def _mixed(images: Path) -> list[Path]:
    paths = sorted(images.rglob("*.jpg"))
    random.Random(0).shuffle(paths)
    return paths


def spdl_loader(folder: str) -> Generator[int, None, None]:
    """SPDL's pipeline: threads that decode without Python's lock, over image files."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    paths = [str(path) for path in sorted(Path(folder).rglob("*.jpg"))]
    generator = random.Random(0)

    def source() -> Iterator[list[str]]:
        while True:
            generator.shuffle(paths)
            for start in range(0, len(paths) - BATCH + 1, BATCH):
                yield paths[start : start + BATCH]

    def decode(batch: list[str]) -> Any:
        found = []
        for path in batch:
            packets = spdl.io.demux_image(path)
            area = generator.uniform(*SCALE) ** 0.5
            size = f"trunc(iw*{area:.4f}):trunc(ih*{area:.4f})"
            place = f"trunc((iw-ow)*{generator.random():.4f}):trunc((ih-oh)*{generator.random():.4f})"
            description = f"crop={size}:{place},scale={SIZE}:{SIZE},format=pix_fmts=rgb24"
            found.append(spdl.io.decode_packets(packets, filter_desc=description))
        return spdl.io.convert_frames(found)

    pipeline = (
        PipelineBuilder().add_source(source()).pipe(decode, concurrency=cpus()).add_sink(8).build(num_threads=cpus())
    )
    with pipeline.auto_stop():
        for batch in pipeline.get_iterator():
            yield len(spdl.io.to_torch(batch))


def textbook_ray_data(folder: str) -> Generator[int, None, None]:
    """Ray Data as in its guide: read_images' bytes, decoded and cropped by tasks, pixels through the object store."""
    import numpy as np
    import ray
    from PIL import Image
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(SIZE, scale=SCALE)

    def transform(row: dict[str, Any]) -> dict[str, Any]:
        image = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
        return {"image": np.asarray(crop(image))}

    ray.data.DataContext.get_current().enable_progress_bars = False
    for _ in itertools.count():
        dataset = ray.data.read_binary_files(folder, shuffle="files").map(transform)
        yield from (len(batch["image"]) for batch in dataset.iter_batches(batch_size=BATCH, prefetch_batches=2))


if __name__ == "__main__":
    write_webdataset(Path(sys.argv[1], "images"), Path(sys.argv[1], "webdataset"), int(sys.argv[2]))
    write_streaming(Path(sys.argv[1], "images"), Path(sys.argv[1], "streaming"))
