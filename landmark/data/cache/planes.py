"""Decoded images as planes Y, Cb and Cr with half the resolution of color (4:2:0), and crops of them.

A stored image is one binary value that describes itself: a header, then the three planes, row by row. It therefore
takes the place of a JPEG in the column `image`, and a batch may contain both.
"""

import struct
import threading
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from landmark.data.sources.image_files import fault_of
from landmark.data.sources.transcode import MAX_STORED_PIXELS

HEADER = struct.Struct("<4sHHHH")
"""A magic number, width and height of the image, width and height of the Y plane, pixels."""
MAGIC = b"YUV1"
MAX_DIVISOR = 8
"""Maximum divisor of an image's width and height. libjpeg-turbo decodes at 1, 1/2, 1/4 and 1/8."""
_scratch = threading.local()


def is_planes(data: bytes | memoryview) -> bool:
    """Return whether a value of the column `image` contains planes instead of a JPEG."""
    return data[:4] == MAGIC


def image_size(data: bytes | memoryview) -> tuple[int, int]:
    """Return the width and height of the image that planes were made of, pixels."""
    _, width, height, _, _ = HEADER.unpack_from(data)
    return width, height


def divisors(short_sides: np.ndarray, side: int) -> np.ndarray:
    """Return the divisor of each image's width and height, int64 (n,): 1, 2, 4 or 8.

    short_sides: pixels (n,). It is the largest divisor that leaves `side` pixels or more, and 1 if `side` is 0.
    """
    if not side:
        return np.ones(len(short_sides), dtype=np.int64)
    halvings = np.floor(np.log2(np.maximum(short_sides, 1) / side))
    return 2 ** np.clip(halvings, 0, np.log2(MAX_DIVISOR)).astype(np.int64)


def planes_bytes(sizes: np.ndarray, side: int) -> np.ndarray:
    """Return the bytes of each image as planes, int64 (n,). sizes: width and height, pixels (n, 2)."""
    stored = -(-sizes // divisors(sizes.min(axis=1), side)[:, None])
    return HEADER.size + stored.prod(axis=1) + 2 * ((stored + 1) // 2).prod(axis=1)


def to_planes(data: bytes | memoryview, side: int) -> bytes | memoryview:
    """Decode a JPEG to planes, with a short side of `side` pixels or more, or in its own size if `side` is 0.

    An image that cannot be decoded stays a JPEG, so that its decoder reports it.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if width * height > MAX_STORED_PIXELS:
            return data
        divisor = int(divisors(np.array([min(width, height)]), side)[0])
        stored_width, stored_height = -(-width // divisor), -(-height // divisor)
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastdct=True,
            fastupsample=True,  # repeats color values, so that their mean below is the JPEG's own value
            min_width=stored_width,
            min_height=stored_height,
            buffer=scratch("decoded", stored_height * stored_width * 3),
        )
    except Exception as error:
        fault_of(error)
        return data
    luma, red, blue = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb))
    header = HEADER.pack(MAGIC, width, height, luma.shape[1], luma.shape[0])
    return b"".join((header, luma.data, _halved(blue).data, _halved(red).data))


def crop_planes(data: bytes | memoryview, corners: Sequence[float], out: np.ndarray) -> None:
    """Resize an area of the image to RGB pixels `out`, uint8 (size, size, 3).

    corners: left, top, right and bottom in pixels of the original image. Raises ValueError if data is incomplete.
    """
    _, width, height, stored_width, stored_height = HEADER.unpack_from(data)
    luma_bytes, half_width, half_height = (
        stored_width * stored_height,
        (stored_width + 1) // 2,
        (stored_height + 1) // 2,
    )
    color_bytes = half_width * half_height
    values = np.frombuffer(data, dtype=np.uint8, offset=HEADER.size)
    luma = values[:luma_bytes].reshape(stored_height, stored_width)
    blue = values[luma_bytes : luma_bytes + color_bytes].reshape(half_height, half_width)
    red = values[luma_bytes + color_bytes :].reshape(half_height, half_width)
    left, top, right, bottom = pixel_box(corners, (width, height), (stored_width, stored_height))
    size = len(out)
    area = slice(top // 2, (bottom + 1) // 2), slice(left // 2, (right + 1) // 2)
    planes = scratch("planes", 6 * size * size).reshape(6, size, size)
    resize(luma[top:bottom, left:right], planes[0])
    resize(red[area], planes[1])
    resize(blue[area], planes[2])
    merged = planes[3:].reshape(size, size, 3)
    cv2.merge([planes[0], planes[1], planes[2]], dst=merged)
    cv2.cvtColor(merged, cv2.COLOR_YCrCb2RGB, dst=out)


def pixel_box(corners: Sequence[float], original: Sequence[int], stored: Sequence[int]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of an area in pixels of the stored image. It has one pixel or more.

    corners: the same in pixels of the original image. original, stored: width and height.
    """
    scale_x, scale_y = stored[0] / original[0], stored[1] / original[1]
    left, top = int(corners[0] * scale_x), int(corners[1] * scale_y)
    right, bottom = round(corners[2] * scale_x), round(corners[3] * scale_y)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def resize(crop: np.ndarray, out: np.ndarray) -> None:
    """Resize pixels to the size of `out`.

    Linear interpolation weights two pixels per axis, which covers all pixels down to half the size. INTER_AREA takes
    six times as long, except for an exact half.
    """
    size = len(out)
    while min(crop.shape[:2]) >= 2 * size:
        crop = cv2.resize(
            crop[: crop.shape[0] // 2 * 2, : crop.shape[1] // 2 * 2],
            (crop.shape[1] // 2, crop.shape[0] // 2),
            interpolation=cv2.INTER_AREA,
        )
    shrinks = max(crop.shape[:2]) > 2 * size
    cv2.resize(crop, (size, size), dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def scratch(name: str, size: int) -> np.ndarray:
    """Return `size` bytes of this thread's memory, uint8. New memory costs a page fault per 4 KiB."""
    held = getattr(_scratch, name, None)
    if held is None or len(held) < size:
        held = np.empty(size, dtype=np.uint8)
        setattr(_scratch, name, held)
    return held[:size]


def _halved(plane: np.ndarray) -> np.ndarray:
    """Return the mean of each 2 x 2 pixels. The last row and column count twice if their number is odd."""
    height, width = plane.shape
    if height % 2 or width % 2:
        plane = cv2.copyMakeBorder(plane, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return cv2.resize(plane, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA)
