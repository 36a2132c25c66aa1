"""Image features for cleaning: hashes, image statistics and embeddings, written in parts so that a run can resume."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
import torch

from landmark.checkpoints.format import load_model, resolve_checkpoint
from landmark.config import CleanConfig, ModelConfig, UserError
from landmark.data.dataset import SPLITS, PackedDataset
from landmark.data.loading.plan import ReadTask, RowGroups
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.loading.reader import RowGroupReader
from landmark.data.sources.image_files import fault_of
from landmark.data.sources.transcode import MAX_STORED_PIXELS
from landmark.data.threads import DaemonPool
from landmark.models import Embedder, build_model, model_info
from landmark.models.weights import PACKAGED
from landmark.progress import Progress
from landmark.storage import Location, NotFound
from landmark.storage.tables import read_table, write_table
from landmark.training.compute.device_augmentation import Preprocess
from landmark.training.compute.precision import inference_precision
from landmark.training.distributed.local import default_device

IMAGENET_CLASSES = 1000


@dataclass(kw_only=True, frozen=True)
class EmbeddingModel:
    """A model that computes embeddings, and its preprocessing."""

    embedder: Embedder
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str
    """Description for the user."""

    @classmethod
    def load(cls, weights: str, image_size: int | None) -> "EmbeddingModel":
        """Load packaged weights by name, or a checkpoint. Raises UserError if there is none."""
        if weights in PACKAGED:
            config = ModelConfig(backbone=PACKAGED[weights], weights=weights)
            info = model_info(config.backbone)
            size = image_size or info.image_size
            model = build_model(config, classes=IMAGENET_CLASSES, image_size=size)
            return cls(
                embedder=Embedder(model),
                image_size=size,
                mean=info.mean,
                std=info.std,
                description=f"{weights} weights",
            )
        checkpoint = resolve_checkpoint(weights)
        model, meta = load_model(checkpoint)
        return cls(
            embedder=Embedder(model),
            image_size=image_size or meta.image_size,
            mean=tuple(meta.mean),
            std=tuple(meta.std),
            description=checkpoint.uri,
        )


@dataclass(kw_only=True, frozen=True)
class ImageStats:
    """Hashes and statistics of one decoded image."""

    file_hash: bytes
    """SHA-256 of the file."""
    pixel_hash: bytes
    """SHA-256 of size and pixels. Empty if the image cannot be decoded."""
    fault: str | None
    """Decoding error, or None."""
    width: int = 0
    height: int = 0
    spread: float = 0.0
    """Standard deviation of the gray values."""
    entropy: float = 0.0
    """Entropy of the gray values, bits."""


def image_stats(data: bytes, out: np.ndarray) -> ImageStats:
    """Decode one JPEG completely and compute its features.

    Resized pixels are written to `out`: uint8 (size, size, 3).
    """
    file_hash = hashlib.sha256(data).digest()
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if width * height > MAX_STORED_PIXELS:
            raise ValueError(f"{width} x {height} pixels: exceeds the maximum image size")
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except Exception as error:
        out[:] = 0
        return ImageStats(file_hash=file_hash, pixel_hash=b"", fault=fault_of(error))
    cv2.resize(pixels, out.shape[:2], dst=out, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    fractions = np.bincount(grey.ravel(), minlength=256) / grey.size
    fractions = fractions[fractions > 0]
    return ImageStats(
        file_hash=file_hash,
        pixel_hash=hashlib.sha256(np.array(pixels.shape).tobytes() + pixels.tobytes()).digest(),
        fault=None,
        width=width,
        height=height,
        spread=float(grey.std()),
        entropy=float(-(fractions * np.log2(fractions)).sum()),
    )


def extract_features(
    dataset: PackedDataset, folder: Location, model: EmbeddingModel, config: CleanConfig, *, quiet: bool = False
) -> pa.Table:
    """Compute the features and embedding of each image of a dataset. Returns one row per image by split and sample.

    Columns: split, sample, those of Look, embedding (float16, fixed size). One part is written per shard. Parts in
    `folder` with the same dataset and settings are reused.
    """
    settings = {"fingerprint": dataset.content_id, "weights": model.description, "image_size": model.image_size}
    _begin(folder, settings)
    total = sum(_rows(dataset, split) for split in SPLITS)
    progress = Progress("embedding", total, enabled=not quiet)
    parts = []
    for split in SPLITS:
        if not _rows(dataset, split):
            continue
        groups = RowGroups.of(dataset, split)
        reader = RowGroupReader(dataset.location, dataset.split(split).shards)
        for shard in np.unique(groups.shard).tolist():
            part = folder / f"{split}-{shard:05d}.parquet"
            indices = np.flatnonzero(groups.shard == shard)
            rows = int(groups.rows[indices].sum())
            try:
                table = read_table(part)
            except NotFound:
                table = None
            if table is None or len(table) != rows:
                read_tasks = (groups.task(int(i), 0, int(groups.rows[i])) for i in indices)
                table = pa.concat_tables(_extracted(split, read_tasks, reader, model, config, progress))
                write_table(part, table)
            else:
                progress.update(rows)
            parts.append(table)
    progress.clear()
    return pa.concat_tables(parts).combine_chunks()


def _rows(dataset: PackedDataset, split: str) -> int:
    selected = dataset.selected(split)
    return dataset.manifest.splits[split].rows if selected is None else int(selected.sum())


def _begin(folder: Location, settings: dict[str, object]) -> None:
    """Raise UserError if `folder` contains parts with other settings."""
    place = folder / "settings.json"
    try:
        found = json.loads(place.read_text())
    except NotFound:
        place.write_text(json.dumps(settings, indent=1) + "\n")
        return
    if found != settings:
        raise UserError(
            f"{folder}: contains features of another dataset, weights or image size; specify another output, or delete that folder"
        )


def _extracted(
    split: str,
    read_tasks: Iterator[ReadTask],
    reader: RowGroupReader,
    model: EmbeddingModel,
    config: CleanConfig,
    progress: Progress,
) -> Iterator[pa.Table]:
    device = default_device()
    embedder = model.embedder.to(device).to(memory_format=torch.channels_last)
    preprocess = Preprocess(model.mean, model.std, device)
    precision = inference_precision(device, embedder, model.image_size)

    def looked(task: ReadTask) -> tuple[pa.Table, np.ndarray, list[ImageStats]]:
        table = reader.read(task)
        pixels = np.zeros((len(table), model.image_size, model.image_size, 3), dtype=np.uint8)
        images = table["image"].to_pylist()
        faults = table["fault"].to_pylist()
        looks = [
            ImageStats(file_hash=b"", pixel_hash=b"", fault=fault) if data is None else image_stats(data, out)
            for data, fault, out in zip(images, faults, pixels, strict=True)
        ]
        return table, pixels, looks

    with DaemonPool(config.threads, "landmark-look") as pool:
        for table, pixels, looks in ordered_prefetch(
            lambda task: pool.submit(looked, task), read_tasks, config.threads
        ):
            with torch.inference_mode(), precision.autocast() if precision is not None else contextlib.nullcontext():
                embeddings = torch.cat(
                    [
                        embedder(preprocess(torch.from_numpy(pixels[at : at + config.batch_size]).to(device))).cpu()
                        for at in range(0, len(pixels), config.batch_size)
                    ]
                )
            progress.update(len(table))
            yield _as_table(split, table["sample"], looks, embeddings.numpy().astype(np.float16))


def _as_table(split: str, samples: pa.ChunkedArray, looks: list[ImageStats], embeddings: np.ndarray) -> pa.Table:
    columns = {name: pa.array([getattr(look, name) for look in looks], kind) for name, kind in _LOOK.items()}
    flat = pa.array(embeddings.ravel())
    return pa.table(
        {
            "split": pa.array([split] * len(looks)),
            "sample": samples,
            **columns,
            "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
        }
    )


_LOOK = {
    "file_hash": pa.binary(),
    "pixel_hash": pa.binary(),
    "fault": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "spread": pa.float64(),
    "entropy": pa.float64(),
}
