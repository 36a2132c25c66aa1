"""The plan for images in tars: groups of consecutive tars, sized for the target size of a shard."""

import collections
import itertools

import numpy as np
import pyarrow as pa

from landmark.config import PrepareConfig, UserError
from landmark.data.dataset import SPLITS
from landmark.data.packing.catalog import RequestedImages
from landmark.data.packing.gldv2_source import Gldv2Source
from landmark.data.packing.index import IdIndex
from landmark.data.packing.tasks import MIN_TASKS, SIZE_SAMPLES, PackingTask
from landmark.data.sources.gldv2 import id_keys, image_id
from landmark.data.sources.image_files import RejectedImage, describe_reasons
from landmark.data.sources.tar import TarReader
from landmark.data.sources.transcode import pack_image

SPREAD = 4.0
"""Number of standard deviations above the expected images of a task before an extra shard starts."""


def plan_tars(
    source: Gldv2Source, wanted: RequestedImages, config: PrepareConfig
) -> tuple[pa.Table, list[PackingTask], IdIndex]:
    """Return the planned rows in the order of their ids, the tasks, and the index of the ids.

    The tar of an image is unknown before the tars are read. Ids are distributed evenly over the tars.
    """
    keys = id_keys(wanted.items["image_id"])
    order = np.argsort(keys)
    splits = wanted.splits()
    rows = wanted.items.drop_columns(["group"]).take(pa.array(order))
    known = wanted.listing.known
    index = IdIndex(
        wanted=keys[order],
        labels=rows["label"].to_numpy(),
        splits=splits[order],
        known=keys[:0] if known is None else known,
    )
    counts = np.bincount(splits, minlength=len(SPLITS))
    image_bytes = _image_bytes(source, config)
    return rows, _tasks(source.tars, counts, image_bytes, config), index


def _image_bytes(source: Gldv2Source, config: PrepareConfig) -> float:
    """Return the mean size of a packed image, estimated from the first images of the first tar."""
    sizes, looked = [], 0
    reasons: collections.Counter[str] = collections.Counter()
    members = TarReader(source.root / source.tars[0], None).members()
    for name, data in members:
        if image_id(name) is None or data is None:
            continue
        looked += 1
        try:
            sizes.append(len(pack_image(data, config.packing, name=name).jpeg))
        except RejectedImage as refused:
            reasons[str(refused)] += 1
        finally:
            if looked == SIZE_SAMPLES:
                members.close()
    if not sizes:
        found = f" ({describe_reasons(reasons)})" if reasons else ""
        raise UserError(
            f"{source.root / source.tars[0]}: none of the first {looked} files is a readable image named "
            f"<16 hexadecimal digits>.jpg{found}; check gldv2.path"
        )
    return sum(sizes) / len(sizes)


def _tasks(tars: tuple[str, ...], counts: np.ndarray, image_bytes: float, config: PrepareConfig) -> list[PackingTask]:
    """Group the tars. Each task fills a shard of the smallest split, but there are enough tasks to run in parallel."""
    shard_bytes = config.packing.shard_mib * 2**20
    smallest = counts[counts > 0].min() * image_bytes / len(tars)
    size = min(max(1, round(shard_bytes / smallest)), -(-len(tars) // MIN_TASKS))
    number = -(-len(tars) // size)
    bounds = np.arange(number + 1) * len(tars) // number
    done = np.arange(len(tars) + 1) * int(counts.sum()) // len(tars)
    tasks: list[PackingTask] = []
    for start, stop in itertools.pairwise(bounds.tolist()):
        expected = counts * (stop - start) / len(tars)
        limits = {
            split: _shard_rows(float(rows), image_bytes, shard_bytes, config.packing.row_group_rows)
            for split, rows in zip(SPLITS, expected, strict=True)
        }
        tasks.append(
            PackingTask(
                number=len(tasks),
                name=f"{len(tasks):05d}",
                rows=int(done[stop] - done[start]),
                tars=list(tars[start:stop]),
                shard_rows=limits,
            )
        )
    return tasks


def _shard_rows(expected: float, image_bytes: float, shard_bytes: int, row_group_rows: int) -> int:
    """Return the rows after which a task starts its next shard of a split, so that its shards have equal sizes."""
    shards = max(1, round(expected * image_bytes / shard_bytes))
    most = (expected + SPREAD * expected**0.5) / shards
    return max(1, int(-(-most // row_group_rows))) * row_group_rows
