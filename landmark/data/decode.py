"""Decoding: JPEG bytes to uint8 pixels of the model's size, decoding no more than the crop needs."""

from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from landmark.config import AugmentConfig
from landmark.data.randomness import uniforms

cv2.setNumThreads(0)

EVALUATION_CROP = 0.95
"""Side of the centre crop of evaluation, as a share of the image's short side."""


def crop_boxes(sizes: np.ndarray, augment: AugmentConfig | None, draws: np.ndarray | None) -> np.ndarray:
    """Return the crop of each image: float64 (n, 4) of left, top, width, height in pixels.

    sizes: (n, 2) of width, height. draws: (n, 4) uniform numbers for area, aspect, left and top, or
    None for the centre crop. Random crops are those of Szegedy et al. 2015 (area uniform, aspect
    log-uniform), clipped to the image in place of drawing again.
    """
    width, height = sizes[:, 0].astype(float), sizes[:, 1].astype(float)
    if augment is None or draws is None or augment.crop_area[0] == 1:
        side = np.minimum(width, height) * EVALUATION_CROP
        return np.stack([(width - side) / 2, (height - side) / 2, side, side], axis=1)
    low, high = augment.crop_area
    area = width * height * (low + (high - low) * draws[:, 0])
    aspect = np.exp((2 * draws[:, 1] - 1) * np.log(augment.crop_aspect))
    crop_width = np.minimum(np.sqrt(area * aspect), width)
    crop_height = np.minimum(np.sqrt(area / aspect), height)
    left, top = draws[:, 2] * (width - crop_width), draws[:, 3] * (height - crop_height)
    return np.stack([left, top, crop_width, crop_height], axis=1)


def decode_batch(
    images: Sequence[bytes | memoryview],
    samples: np.ndarray,
    size: int,
    *,
    augment: AugmentConfig | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> np.ndarray:
    """Decode, crop and resize JPEGs: uint8 (n, size, size, 3), RGB.

    With `augment`, crops are random, a function of (seed, epoch, sample). libjpeg-turbo decodes at the
    smallest scale (eighths) that still covers the crop, so that the resize after it is slight.
    Raises ValueError naming the sample whose bytes are no JPEG.
    """
    sizes = np.array([_size(data, sample) for data, sample in zip(images, samples, strict=True)])
    draws = uniforms(seed, epoch, samples, 4) if augment is not None else None
    boxes = crop_boxes(sizes.reshape(-1, 2), augment, draws)
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for i, data in enumerate(images):
        try:
            pixels[i] = _decode_crop(data, sizes[i], boxes[i], size)
        except ValueError as error:
            raise ValueError(f"sample {samples[i]}: {error}") from None
    return pixels


def flips(seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    """Return which samples are mirrored: bool (n,), half of them."""
    return uniforms(seed, epoch, samples, 5)[:, 4] < 0.5


def _size(data: bytes | memoryview, sample: int) -> tuple[int, int]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ValueError(f"sample {sample}: {error}") from None
    return width, height


def _decode_crop(data: bytes | memoryview, image_size: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    width, height = int(image_size[0]), int(image_size[1])
    left, top, crop_width, crop_height = box
    wanted = size / min(crop_width, crop_height)
    decoded = simplejpeg.decode_jpeg(
        data,
        "RGB",
        fastdct=True,
        fastupsample=True,
        min_width=min(width, int(width * wanted)),
        min_height=min(height, int(height * wanted)),
    )
    scale_x, scale_y = decoded.shape[1] / width, decoded.shape[0] / height
    x, y = int(left * scale_x), int(top * scale_y)
    right, bottom = round((left + crop_width) * scale_x), round((top + crop_height) * scale_y)
    crop = decoded[y : max(bottom, y + 1), x : max(right, x + 1)]
    shrinks = crop.shape[0] > 1.5 * size or crop.shape[1] > 1.5 * size
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
