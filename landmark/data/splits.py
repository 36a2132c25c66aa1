"""Splits into train, val and test by a seed, stratified by class, with each group in one split."""

import numpy as np
import pyarrow as pa

from landmark.config import SplitConfig
from landmark.data.randomness import HashStream, Stream, generator, hash_strings

TRAIN, VAL, TEST = 0, 1, 2


def split_images(labels: np.ndarray, groups: pa.Array | pa.ChunkedArray, config: SplitConfig, seed: int) -> np.ndarray:
    """Return the split of each image: int8 (n,) of TRAIN, VAL, TEST.

    labels: int (n,), dense. groups: string (n,). Images of a group are in the same split. The groups of each class,
    ordered by a seeded hash, fill test, then val, then train. The fractions of a class are rounded up or down at
    random, so that small classes fill val and test in expectation. Each class keeps an image in train, unless a group
    that it shares with another class takes its last one.
    """
    codes = groups.combine_chunks() if isinstance(groups, pa.ChunkedArray) else groups
    encoded = codes.dictionary_encode()
    group = encoded.indices.to_numpy(zero_copy_only=False)
    first_row = np.unique(group, return_index=True)[1]
    size = np.bincount(group)
    owner = labels[first_row]
    order = np.lexsort((hash_strings(encoded.dictionary, seed, HashStream.SPLIT), owner))
    placed = _fill(owner[order], size[order], config, seed, int(labels.max(initial=-1)) + 1)
    split_of_group = np.empty(len(size), dtype=np.int8)
    split_of_group[order] = placed
    _keep_in_train(labels, group, split_of_group)
    return split_of_group[group]


def _fill(owner: np.ndarray, size: np.ndarray, config: SplitConfig, seed: int, classes: int) -> np.ndarray:
    """Assign splits to groups that are sorted by class: int8 (groups,)."""
    total = np.bincount(owner, weights=size, minlength=classes)
    before = np.cumsum(size) - size
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    before = before - np.repeat(before[starts], np.diff(np.append(starts, len(owner))))
    offset = generator(seed, Stream.SPLIT_OFFSETS).random(classes)
    position = (before + size * offset[owner]) / total[owner]
    placed = np.full(len(owner), TRAIN, dtype=np.int8)
    placed[position < config.test + config.val] = VAL
    placed[position < config.test] = TEST
    last_of_class = np.append(starts[1:], len(owner)) - 1
    placed[last_of_class] = TRAIN
    return placed


def _keep_in_train(labels: np.ndarray, group: np.ndarray, split_of_group: np.ndarray) -> None:
    """Move one group of each class without training images to train. Only necessary if groups span classes."""
    in_train = np.bincount(labels[split_of_group[group] == TRAIN], minlength=int(labels.max(initial=-1)) + 1)
    found, first_row = np.unique(labels, return_index=True)
    split_of_group[group[first_row[in_train[found] == 0]]] = TRAIN
