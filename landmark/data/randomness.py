"""Random numbers that are a function of only (seed, epoch, sample) or (seed, purpose, …)."""

import enum

import numpy as np
import pyarrow as pa

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Stream(enum.IntEnum):
    """Purposes of `generator`. Each purpose has its own key, so that two choices never share random numbers."""

    SPLIT_OFFSETS = 1
    """Rounding of the split fractions of each class."""
    PACKING_ORDER = 2
    """Order of the rows in the shards."""
    SIZE_SAMPLE = 3
    """Sample of images to estimate the size of a shard."""
    SYNTHETIC_PLAN = 10
    SYNTHETIC_LANDMARK = 11
    SYNTHETIC_DUPLICATE = 12
    SAMPLING = 0x5A17
    """Repetitions of a sample in an epoch."""
    MIXING = 0x4D6978
    """MixUp and CutMix."""
    SAMPLED_CLASSES = 0x436C6173
    """Classes that a step's loss compares with."""
    EPOCH_ORDER = 0x45706F63
    """Order of the row groups in an epoch."""
    WINDOW_ORDER = 0x57696E64
    """Order of the rows in a window of row groups."""


class HashStream(enum.IntEnum):
    """Purposes of `hash_strings`. The orders for two purposes are independent."""

    SPLIT = 0
    """Order in which the groups of a class fill test, val and train. It is 0, the only key of earlier versions, so that
    splits and subsets of rule 1 do not change."""
    SUBSET_CLASSES = 1
    """Classes that subset.choose random keeps."""
    SUBSET_MAX_IMAGES = 2
    """Images per class that subset.max_images keeps."""
    SUBSET_IMAGES = 3
    """Images that subset.images keeps."""
    SUBSET_TAIL = 4
    """Training images that subset.tail keeps."""


def uniforms(seed: int, epoch: int, samples: np.ndarray, count: int) -> np.ndarray:
    """Return `count` uniform numbers in [0, 1) per sample: float64 (n, count).

    Counter-based (SplitMix64, Steele et al. 2014). The augmentation of a sample therefore does not depend on the
    worker, thread or resumed run that decodes it.
    """
    with np.errstate(over="ignore"):
        key = _mix(np.asarray([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + _GAMMA)
        key = _mix(key + np.uint64(epoch) * _GAMMA)
        streams = _mix(key + np.asarray(samples).astype(np.uint64) * _GAMMA)
        bits = _mix(streams[:, None] + np.arange(1, count + 1, dtype=np.uint64)[None, :] * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(seed: int, stream: Stream, *numbers: int) -> np.random.Generator:
    """Return the generator of one stream of a seed. numbers: the part of the stream, such as (epoch, window)."""
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, int(stream), *numbers])


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_strings(values: pa.Array | pa.ChunkedArray, seed: int, stream: HashStream) -> np.ndarray:
    """Return a seeded hash of each value's text, uint64 (n,). It does not depend on the machine or the order of the
    rows.

    FNV-1a over the 8-byte words of the text, mixed with the seed and the stream. Equal texts have equal hashes.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    text = array.cast(pa.large_string()) if not pa.types.is_large_string(array.type) else array
    offsets = np.frombuffer(text.buffers()[1], dtype=np.int64)[text.offset : text.offset + len(text) + 1]
    data = np.frombuffer(text.buffers()[2] or b"", dtype=np.uint8)
    lengths = np.diff(offsets)
    width = -(-max(int(lengths.max(initial=0)), 1) // 8) * 8
    padded = np.zeros((len(text), width), dtype=np.uint8)
    distinct = np.unique(lengths)
    if len(distinct) == 1:
        padded[:, : distinct[0]] = data[offsets[0] : offsets[-1]].reshape(len(text), -1)
    else:
        for length in distinct:
            rows, inside = np.flatnonzero(lengths == length), np.arange(length)
            padded[rows[:, None], inside[None, :]] = data[offsets[rows][:, None] + inside[None, :]]
    hashes = np.full(len(text), 0xCBF29CE484222325, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for number, word in enumerate(padded.view("<u8").T):
            hashes = np.where(8 * number < lengths, (hashes ^ word) * np.uint64(0x100000001B3), hashes)
        key = np.asarray([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) * _GAMMA
        if stream:
            key = key ^ _mix(np.asarray([stream], dtype=np.uint64) * _GAMMA)
        return _mix(_mix(hashes + lengths.astype(np.uint64)) + key)
