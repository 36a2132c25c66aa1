"""Which synthetic images there are: labels with a long tail, and a record of every injected fault."""

import numpy as np
import pyarrow as pa

from landmark.config import SyntheticConfig
from landmark.data.randomness import Stream, generator

LEAST_IMAGES = 3
"""Images of the rarest class, where there are enough: one for each split."""


def plan_images(config: SyntheticConfig, seed: int) -> pa.Table:
    """Return one row an image, in random order.

    image_id: 16 hexadecimal digits. landmark_id: the label it carries. true_landmark_id: what it shows,
    null for nothing. group: near-duplicates share their source's. kind: landmark, nothing or broken.
    duplicate_of: the image_id it copies, or null. view_seed: int64, which view; a copy has its source's.
    The last four and true_landmark_id are the truth that detectors of such faults are scored against.
    """
    rng = generator(seed, Stream.SYNTHETIC_PLAN)
    total = config.images
    shown = np.repeat(np.arange(config.classes), class_counts(config))[rng.permutation(total)]
    ids = _ids(seed, total)
    views = rng.integers(0, 2**62, total)
    order = rng.permutation(total)
    sizes = [round(total * share) for share in (config.near_duplicates, config.nothing, config.broken)]
    copies, nothing, broken, rest = np.split(order, np.cumsum(sizes))
    source = np.full(total, -1)
    if len(copies) and len(rest):
        source[copies] = rest[rng.integers(0, len(rest), len(copies))]
        shown[copies], views[copies] = shown[source[copies]], views[source[copies]]
    label = shown.copy()
    noisy = rng.permutation(np.setdiff1d(np.arange(total), nothing))[: round(total * config.label_noise)]
    label[noisy] = (shown[noisy] + rng.integers(1, config.classes, len(noisy))) % config.classes
    kind = np.full(total, "landmark", dtype=object)
    kind[nothing], kind[broken] = "nothing", "broken"
    names = np.array([f"synthetic-{number:06d}" for number in range(config.classes)], dtype=object)
    truth = names[shown]
    truth[nothing] = None
    copied = np.where(source >= 0, ids[source], None)
    return pa.table(
        {
            "image_id": pa.array(ids, pa.string()),
            "landmark_id": pa.array(names[label], pa.string()),
            "true_landmark_id": pa.array(truth, pa.string()),
            "group": pa.array(np.where(source >= 0, ids[source], ids), pa.string()),
            "kind": pa.array(kind, pa.string()),
            "duplicate_of": pa.array(copied, pa.string()),
            "view_seed": pa.array(views, pa.int64()),
        }
    )


def class_counts(config: SyntheticConfig) -> np.ndarray:
    """Return the images of each class, int64 (classes,), summing to config.images: n^-tail beyond what each class has.

    That is 3, or as many as each can have where there are fewer.
    """
    least = min(LEAST_IMAGES, config.images // config.classes)
    weights = np.arange(1, config.classes + 1, dtype=float) ** -config.tail
    spare = config.images - least * config.classes
    ideal = spare * weights / weights.sum()
    counts = np.floor(ideal).astype(np.int64)
    missing = spare - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:missing]] += 1
    return counts + least


def _ids(seed: int, total: int) -> np.ndarray:
    """Return distinct ids: a permutation of the numbers by a bijective mix, so that none can meet."""
    with np.errstate(over="ignore"):
        x = np.arange(total, dtype=np.uint64) + np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    text = np.char.zfill(np.vectorize("{:x}".format, otypes=["U16"])(x) if total else np.empty(0, "U16"), 16)
    return text.astype(object)
