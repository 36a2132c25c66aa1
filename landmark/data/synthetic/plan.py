"""The plan of synthetic images: labels with a long tail, and a record of each injected fault."""

import numpy as np
import pyarrow as pa

from landmark.config import SyntheticConfig
from landmark.data.randomness import Stream, generator

MIN_IMAGES = 3
"""Minimum images per class if there are enough, one per split."""


def plan_images(config: SyntheticConfig, seed: int) -> pa.Table:
    """Return one row per image, in random order.

    - image_id: 16 hexadecimal digits
    - landmark_id: the label
    - true_landmark_id: the landmark in the image, null for a distractor
    - group: a near-duplicate has the group of its source
    - kind: landmark, nothing (distractor) or broken
    - duplicate_of: image_id of a near-duplicate's source, or null
    - view_seed: int64, seed of the view. A near-duplicate has the view of its source

    true_landmark_id, kind, duplicate_of and view_seed are the ground truth for scoring the detectors of such faults.
    """
    rng = generator(seed, Stream.SYNTHETIC_PLAN)
    total = config.images
    shown = np.repeat(np.arange(config.classes), class_counts(config))[rng.permutation(total)]
    ids = _ids(seed, total)
    views = rng.integers(0, 2**62, total)
    order = rng.permutation(total)
    sizes = [round(total * fraction) for fraction in (config.near_duplicates, config.nothing, config.broken)]
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
    """Return the images per class, int64 (classes,). The sum is config.images. Above a minimum, counts follow n^-tail.

    The minimum is 3, or as many as each class can have.
    """
    least = min(MIN_IMAGES, config.images // config.classes)
    weights = np.arange(1, config.classes + 1, dtype=float) ** -config.tail
    spare = config.images - least * config.classes
    ideal = spare * weights / weights.sum()
    counts = np.floor(ideal).astype(np.int64)
    missing = spare - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:missing]] += 1
    return counts + least


def _ids(seed: int, total: int) -> np.ndarray:
    """Return distinct ids, from a bijective mix of consecutive numbers, so that no two are equal."""
    with np.errstate(over="ignore"):
        x = np.arange(total, dtype=np.uint64) + np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    text = np.char.zfill(np.vectorize("{:x}".format, otypes=["U16"])(x) if total else np.empty(0, "U16"), 16)
    return text.astype(object)
