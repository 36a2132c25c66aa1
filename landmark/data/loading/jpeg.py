"""Decoding of JPEGs and cached planes to pixels of the model's input size, with the minimum work that the crop
requires."""

from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from landmark.config import CROP_PCT, AugmentConfig
from landmark.data.cache.planes import crop_planes, image_size, is_planes, pixel_box, scratch
from landmark.data.loading.randaugment import randaugment
from landmark.data.randomness import uniforms
from landmark.data.sources.image_files import fault_of
from landmark.data.sources.transcode import MAX_STORED_PIXELS

cv2.setNumThreads(0)


def crop_boxes(
    sizes: np.ndarray, augment: AugmentConfig | None, uniform: np.ndarray | None, crop_pct: float = CROP_PCT
) -> np.ndarray:
    """Return the crop of each image: float64 (n, 4) of left, top, width, height in pixels.

    sizes: (n, 2) of width, height. uniform: (n, 4) uniform numbers for area, aspect, left and top, or None for the center
    crop. crop_pct: side of the center crop as a fraction of the short side. Random crops follow Szegedy et al. 2015 (area
    uniform, aspect log-uniform). They are clipped to the image instead of sampled again.
    """
    width, height = sizes[:, 0].astype(float), sizes[:, 1].astype(float)
    if augment is None or uniform is None or augment.crop_area[0] == 1:
        side = np.minimum(width, height) * crop_pct
        return np.stack([(width - side) / 2, (height - side) / 2, side, side], axis=1)
    low, high = augment.crop_area
    area = width * height * (low + (high - low) * uniform[:, 0])
    aspect = np.exp((2 * uniform[:, 1] - 1) * np.log(augment.crop_aspect))
    crop_width = np.minimum(np.sqrt(area * aspect), width)
    crop_height = np.minimum(np.sqrt(area / aspect), height)
    left, top = uniform[:, 2] * (width - crop_width), uniform[:, 3] * (height - crop_height)
    return np.stack([left, top, crop_width, crop_height], axis=1)


def decode_batch(
    images: Sequence[bytes | memoryview],
    visits: np.ndarray,
    size: int,
    *,
    augment: AugmentConfig | None = None,
    crop_pct: float = CROP_PCT,
    seed: int = 0,
    epoch: int = 0,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode, crop, resize and augment images. Returns uint8 RGB pixels (n, size, size, 3) and the errors by row.

    images: JPEGs, or planes as `landmark.data.cache.planes` stores them. Their crops have the same boxes.
    visits: keys of randomness, int64 (n,). They are the sample numbers unless images repeat. With `augment`, crops and
    RandAugment are functions of (seed, epoch, visit). Rows that cannot be decoded are black and listed in the errors.
    `out` receives the pixels, so that no new memory is allocated.

    libjpeg-turbo decodes at 1, 1/2, 1/4 or 1/8, the smallest scale that covers the crop. Its other scales (n/8) have no
    SIMD code and take longer than a full decode.
    """
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8) if out is None else out
    sizes, faults = _read_headers(images)
    boxes = crop_boxes(sizes, augment, uniforms(seed, epoch, visits, 4) if augment is not None else None, crop_pct)
    covered = np.floor(np.log2(np.minimum(boxes[:, 2], boxes[:, 3]) / size))
    scales = 2 ** np.clip(covered, 0, 3).astype(np.int64)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    plan = zip(sizes.tolist(), scales.tolist(), corners.tolist(), strict=True)
    for row, (size_of_row, scale, box) in enumerate(plan):
        if row in faults:
            pixels[row] = 0
            continue
        try:
            if is_planes(images[row]):
                crop_planes(images[row], box, pixels[row])
            else:
                _decode_crop(images[row], size_of_row, scale, box, pixels[row])
        except Exception as error:
            faults[row] = fault_of(error)
            pixels[row] = 0
    if augment is not None and augment.randaugment_ops:
        randaugment(
            pixels, visits, seed, epoch, operations=augment.randaugment_ops, magnitude=augment.randaugment_magnitude
        )
    return pixels, faults


def flips(seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    """Return a mask of the samples to flip horizontally, bool (n,), half of them."""
    return uniforms(seed, epoch, samples, 5)[:, 4] < 0.5


def _read_headers(images: Sequence[bytes | memoryview]) -> tuple[np.ndarray, dict[int, str]]:
    """Return width and height per image, int64 (n, 2), and the errors by row. Unknown sizes are 1 x 1."""
    sizes = np.ones((len(images), 2), dtype=np.int64)
    faults = {}
    for row, data in enumerate(images):
        try:
            if is_planes(data):
                width, height = image_size(data)
            else:
                height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except Exception as error:
            faults[row] = fault_of(error)
            continue
        if width * height > MAX_STORED_PIXELS:
            faults[row] = f"{width} x {height} pixels, more than any packed image has"
            continue
        sizes[row] = width, height
    return sizes, faults


def _decode_crop(data: bytes | memoryview, size: list[int], scale: int, corners: list[float], out: np.ndarray) -> None:
    """Decode one image of a known size at 1/scale, and resize the area between the corners to `out`."""
    width, height = -(-size[0] // scale), -(-size[1] // scale)
    decoded = simplejpeg.decode_jpeg(
        data,
        "RGB",
        fastdct=True,
        fastupsample=True,
        min_width=width,
        min_height=height,
        buffer=scratch("jpeg", width * height * 3),
    )
    left, top, right, bottom = pixel_box(corners, size, decoded.shape[1::-1])
    crop = decoded[top:bottom, left:right]
    # Linear interpolation weights two pixels per axis, which covers all pixels down to half the size. INTER_AREA takes
    # six times as long.
    shrinks = max(crop.shape[:2]) > 2 * len(out)
    cv2.resize(crop, out.shape[:2], dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
