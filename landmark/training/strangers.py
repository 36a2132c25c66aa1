"""Images without a landmark, inferred beside a split's: GAP counts a guess for one as wrong, rejection is told by their scores."""

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from pyarrow import fs as pafs

from landmark.config import PackingConfig, UserError
from landmark.data.dataset import PackedDataset
from landmark.data.decode import decode_batch
from landmark.data.images import Refused, pack_image
from landmark.data.selection import open_dataset
from landmark.evaluation.predictions import NO_LANDMARK, Predictions
from landmark.storage import Location
from landmark.training.inference import Job, Replica, infer, job_of


def infer_strangers(
    checkpoint: Location, place: Location, job: Job, output: Location | None, *, first_sample: int, quiet: bool = False
) -> tuple[Predictions, int]:
    """Return predictions for images that show no landmark, and how many files are none that can be read.

    place: a packed dataset, all of whose images count, whatever their labels; or a folder of images in any format, those below
    it included. job: the split's. first_sample: the number of the first one. Raises UserError where there is no image.
    """
    if (place / "manifest.json").exists():
        parts, refused = list(_of_dataset(checkpoint, open_dataset(place.uri), job, output, quiet)), 0
    else:
        parts, refused = _of_folder(checkpoint, place, job)
    count = sum(map(len, parts))
    if not count:
        raise UserError(
            f"{place}: no readable image; give a folder of images without a landmark, or a packed dataset of them"
        )
    whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _names()}
    return Predictions(**whole | {"samples": first_sample + np.arange(count)}), refused


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(Predictions)]


def _of_dataset(
    checkpoint: Location, dataset: PackedDataset, job: Job, output: Location | None, quiet: bool
) -> Iterator[Predictions]:
    for split, entry in dataset.manifest.splits.items():
        if entry.rows:
            mine = job_of(checkpoint, dataset, split, job.guesses, job.batch_size, job.damaged)
            mine = dataclasses.replace(mine, guesses=job.guesses, strangers=True)
            yield infer(mine, dataset.split(split).rows, output, quiet=quiet).predictions


def _of_folder(checkpoint: Location, place: Location, job: Job) -> tuple[list[Predictions], int]:
    if not place.exists():
        raise UserError(
            f"{place}: does not exist; give a folder of images without a landmark, or a packed dataset of them"
        )
    replica = Replica(job, None)
    packing = PackingConfig(short_side=replica.dataset.manifest.short_side, quality=replica.dataset.manifest.quality)
    start = len(place.path.rstrip("/")) + 1
    files = [info.path[start:] for info in place.infos(recursive=True) if info.type == pafs.FileType.File]
    files = sorted(name for name in files if not name.rsplit("/", 1)[-1].startswith("."))

    def packed(name: str) -> bytes | None:
        try:
            return pack_image((place / name).read_bytes(), packing).jpeg
        except Refused:
            return None

    parts, refused, size = [], 0, replica.meta.image_size
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(files), job.batch_size):
            names = files[first : first + job.batch_size]
            images = {
                name: image for name, image in zip(names, pool.map(packed, names), strict=True) if image is not None
            }
            refused += len(names) - len(images)
            if images:
                draws = np.arange(len(images))
                pixels, _ = decode_batch(list(images.values()), draws, size, augment=None, seed=0, epoch=1)
                parts.append(_guessed(replica, list(images), pixels))
    return parts, refused


def _guessed(replica: Replica, names: list[str], pixels: np.ndarray) -> Predictions:
    count = len(names)
    with torch.inference_mode():
        inputs = replica.preprocess(torch.from_numpy(pixels).to(replica.device), torch.zeros(count, dtype=torch.bool))
        output = replica.run(inputs)
    labels = torch.full((count,), NO_LANDMARK, device=replica.device)
    return replica.guesses(np.arange(count), np.array(names), output, labels)
