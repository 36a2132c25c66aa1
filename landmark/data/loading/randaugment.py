"""RandAugment (Cubuk et al. 2020) on uint8 batches, with the operations and magnitudes of torchvision's
v2.RandAugment."""

import math
from collections.abc import Callable

import cv2
import numpy as np

from landmark.data.randomness import uniforms

cv2.setNumThreads(0)

FIRST_DRAW = 5
"""Index of the first random number of a sample for RandAugment. Crop and flip use the numbers before it."""
MAX_MAGNITUDE = 30.0
FILL = (128, 128, 128)
"""Color of the area that a shift uncovers, as in the paper's code."""

Operation = Callable[[np.ndarray, float, float], np.ndarray]
"""Takes pixels (h, w, 3), a strength from 0 to 1 and a sign, 1 or -1. Returns pixels."""


def randaugment(
    pixels: np.ndarray, visits: np.ndarray, seed: int, epoch: int, *, operations: int, magnitude: float
) -> None:
    """Apply `operations` random operations to each image of uint8 (n, h, w, 3), in place.

    The operations and their signs are a function of only (seed, epoch, visit). magnitude is 0 to 30.
    """
    chosen = uniforms(seed, epoch, visits, FIRST_DRAW + operations)[:, FIRST_DRAW:] * len(OPERATIONS)
    signs = np.where(chosen % 1 < 0.5, -1.0, 1.0).tolist()
    names = list(OPERATIONS)
    for image, indices, image_signs in zip(pixels, chosen.astype(np.int64).tolist(), signs, strict=True):
        changed = image
        for index, sign in zip(indices, image_signs, strict=True):
            changed = OPERATIONS[names[index]](changed, magnitude / MAX_MAGNITUDE, sign)
        if changed is not image:
            image[:] = changed


def _warp(image: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
    """Return an image whose pixel at p is the source pixel at matrix * p, with bilinear interpolation."""
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image,
        np.array(matrix).reshape(2, 3),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FILL,
    )


def _shear_x(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    slope = 0.3 * strength * sign
    return _warp(image, (1, slope, slope / 2, 0, 1, 0))


def _shear_y(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    slope = 0.3 * strength * sign
    return _warp(image, (1, 0, 0, slope, 1, slope / 2))


def _shift(image: np.ndarray, x: int, y: int) -> np.ndarray:
    height, width = image.shape[:2]
    shifted = np.full_like(image, FILL[0])
    shifted[max(y, 0) : height + y, max(x, 0) : width + x] = image[max(-y, 0) : height - y, max(-x, 0) : width - x]
    return shifted


def _translate_x(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    return _shift(image, int(sign * strength * 150 / 331 * image.shape[1]), 0)


def _translate_y(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    return _shift(image, 0, int(sign * strength * 150 / 331 * image.shape[0]))


def _rotate(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    angle = math.radians(30 * strength * sign)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    return _warp(image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def _looked_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return table[pixel]. The table is (256,), or (256, 3) with one column per channel, and is clipped to 0 to 255."""
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def _brightness(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    return _looked_up(image, np.arange(256) * (1 + 0.9 * strength * sign))


def _contrast(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    factor = 1 + 0.9 * strength * sign
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _looked_up(image, mean + (np.arange(256) - mean) * factor)


def _color(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    factor = 1 + 0.9 * strength * sign
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13


def _sharpness(image: np.ndarray, strength: float, sign: float) -> np.ndarray:
    factor = 1 + 0.9 * strength * sign
    smooth = cv2.filter2D(image, -1, _SMOOTH)
    changed = cv2.addWeighted(image, factor, smooth, 1 - factor, 0)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        changed[edge] = image[edge]
    return changed


def _posterize(image: np.ndarray, strength: float, _: float) -> np.ndarray:
    kept = 8 - round(4 * strength)
    return _looked_up(image, np.arange(256) & (0xFF << (8 - kept)))


def _solarize(image: np.ndarray, strength: float, _: float) -> np.ndarray:
    values = np.arange(256)
    return _looked_up(image, np.where(values < 255 * (1 - strength), values, 255 - values))


def _autocontrast(image: np.ndarray, _: float, __: float) -> np.ndarray:
    tables = []
    for channel in cv2.split(image):
        low, high, _low_at, _high_at = cv2.minMaxLoc(channel)
        tables.append((np.arange(256) - low) * (255 / (high - low)) if high > low else np.arange(256))
    return _looked_up(image, np.stack(tables, axis=1)[None])


def _equalize(image: np.ndarray, _: float, __: float) -> np.ndarray:
    """Equalize the histogram of each channel like Pillow's ImageOps.equalize."""
    tables = []
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel()
        present = counts[counts > 0]
        step = int(counts.sum() - present[-1]) // 255
        below = np.cumsum(counts) - counts
        tables.append((below + step // 2) // step if step else np.arange(256))
    return _looked_up(image, np.stack(tables, axis=1)[None])


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _, __: image,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""The 14 operations. A random number selects one by its position."""
