"""Images of any format and mode become upright RGB JPEGs or are rejected with a reason."""

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from landmark.config import PackingConfig
from landmark.data.sources.image_files import RejectedImage
from landmark.data.sources.transcode import pack_image

CONFIG = PackingConfig(short_side=64, quality=90)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(width: int = 120, height: int = 80) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 220
    pixels[:, width // 2 :, 2] = 220
    return Image.fromarray(pixels)


def colors(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean colors of the left and the right quarter."""
    pixels = simplejpeg.decode_jpeg(pack_image(data, CONFIG).jpeg).astype(float)
    quarter = pixels.shape[1] // 4
    return pixels[:, :quarter].mean(axis=(0, 1)), pixels[:, -quarter:].mean(axis=(0, 1))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGB", {"quality": 95}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
    ],
)
def test_colors_survive_every_format_and_mode(kind, mode, options):
    left, right = colors(encoded(halves().convert(mode), kind, **options))
    assert left[0] > 150 and left[2] < 70
    assert right[2] > 150 and right[0] < 70


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16", "I"])
def test_grayscale_modes_keep_their_brightness(mode):
    gray = np.tile(np.linspace(0, 255, 120).astype(np.uint8), (80, 1))
    image = Image.fromarray(gray)
    if mode.startswith("I"):
        image = Image.fromarray(gray.astype(np.uint16) * 257).convert(mode)
    data = encoded(image.convert(mode) if mode != "I;16" else image, "TIFF" if mode == "I" else "PNG")
    left, right = colors(data)
    assert left.max() < 90
    assert right.min() > 160


def test_transparent_pixels_become_white():
    image = halves().convert("RGBA")
    image.putalpha(0)
    left, right = colors(encoded(image, "PNG"))
    assert left.min() > 250 and right.min() > 250


@pytest.mark.parametrize(("orientation", "rotated"), [(1, False), (3, False), (6, True), (8, True)])
def test_orientation_is_applied(orientation, rotated):
    exif = Image.Exif()
    exif[0x0112] = orientation
    packed = pack_image(encoded(halves(), "JPEG", exif=exif, quality=95), PackingConfig(short_side=50))
    assert (packed.height > packed.width) == rotated
    pixels = simplejpeg.decode_jpeg(packed.jpeg)
    corner = {1: pixels[5, 5], 3: pixels[-5, -5], 6: pixels[5, 5], 8: pixels[-5, -5]}[orientation]
    assert corner[0] > 150 and corner[2] < 80


@given(st.integers(8, 200), st.integers(8, 200), st.integers(16, 128))
def test_the_short_side_has_the_given_size_and_nothing_is_enlarged(width, height, short_side):
    if max(width, height) > 20 * min(width, height):
        return
    packed = pack_image(encoded(halves(width, height), "PNG"), PackingConfig(short_side=short_side))
    assert min(packed.width, packed.height) == min(short_side, width, height)
    assert simplejpeg.decode_jpeg(packed.jpeg).shape == (packed.height, packed.width, 3)
    assert packed.width / packed.height == pytest.approx(width / height, rel=1.2 / min(packed.width, packed.height))


def test_only_a_small_upright_rgb_jpeg_is_kept_unchanged():
    small = encoded(halves(60, 40), "JPEG")
    assert pack_image(small, CONFIG).jpeg == small
    assert pack_image(encoded(halves(400, 300), "JPEG"), CONFIG).jpeg != small
    assert pack_image(encoded(halves(60, 40).convert("L"), "JPEG"), CONFIG).jpeg[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"no picture at all", "not an image"),
        (encoded(halves(), "JPEG")[:-100], "truncated"),
        (encoded(halves(), "PNG")[:200], "truncated"),
        (encoded(Image.new("RGB", (7, 100)), "PNG"), "too small"),
        (encoded(Image.new("RGB", (2000, 20)), "PNG"), "too long"),
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "too large (packing.max_megapixels is 100)"),
        (encoded(Image.new("1", (10_100, 10_000)), "PNG"), "too large (packing.max_megapixels is 100)"),
    ],
)
def test_an_unusable_image_is_rejected_with_a_reason(data, reason):
    with pytest.raises(RejectedImage) as rejected:
        pack_image(data, CONFIG)
    assert str(rejected.value) == reason


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 255))
def test_damaged_files_are_rejected_or_decoded(tail, position, value):
    data = bytearray(encoded(halves(), "JPEG"))
    data[position % len(data)] = value
    for candidate in (bytes(data), bytes(data[: position % len(data)]) + tail, tail):
        try:
            packed = pack_image(candidate, CONFIG)
        except RejectedImage:
            continue
        assert simplejpeg.decode_jpeg(packed.jpeg).shape[2] == 3


def test_unusual_real_files_are_decoded(photographs: Path):
    files = sorted((photographs / "odd_files").iterdir())
    assert len(files) >= 9
    for file in files:
        packed = pack_image(file.read_bytes(), CONFIG)
        pixels = simplejpeg.decode_jpeg(packed.jpeg)
        assert min(packed.width, packed.height) <= 64
        assert pixels.std() > 10
        with Image.open(file) as original:
            rotated = original.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            assert ((original.width > original.height) != rotated) == (packed.width > packed.height) or (
                original.width == original.height
            )
