"""JPEG decoding: the requested crop at the requested size, independent of the batch."""

import io

import numpy as np
import pytest
from PIL import Image

from landmark.config import AugmentConfig
from landmark.data.loading.jpeg import crop_boxes, decode_batch, flips


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def ramp(width: int, height: int) -> np.ndarray:
    """Red increases to the right, green downwards."""
    red = np.broadcast_to(np.linspace(0, 255, width)[None, :], (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([red, green, np.full((height, width), 80)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("size", [32, 64, 150, 224])
def test_a_center_crop_shows_the_center(size):
    pixels = decode_batch([jpeg(ramp(300, 200))], np.array([0]), size)[0][0].astype(float)
    side = 200 * 0.95
    left, right = (150 - side / 2) / 300 * 255, (150 + side / 2) / 300 * 255
    assert pixels.shape == (size, size, 3)
    assert pixels[:, 0, 0].mean() == pytest.approx(left, abs=5)
    assert pixels[:, -1, 0].mean() == pytest.approx(right, abs=5)
    assert pixels[0, :, 1].mean() == pytest.approx(0.025 * 255, abs=5)
    assert pixels[-1, :, 1].mean() == pytest.approx(0.975 * 255, abs=5)


def test_random_crops_depend_only_on_seed_epoch_and_sample():
    images = [jpeg(ramp(160, 120 + 10 * i)) for i in range(4)]
    samples = np.array([5, 9, 100, 7])
    augment = AugmentConfig()
    together, _ = decode_batch(images, samples, 48, augment=augment, seed=1, epoch=2)
    for i in range(4):
        single, _ = decode_batch([images[i]], samples[[i]], 48, augment=augment, seed=1, epoch=2)
        assert np.array_equal(single[0], together[i])
    assert not np.array_equal(together, decode_batch(images, samples, 48, augment=augment, seed=1, epoch=3)[0])
    assert not np.array_equal(together, decode_batch(images, samples, 48, augment=augment, seed=2, epoch=2)[0])


def test_random_crops_cover_the_requested_area_and_stay_inside():
    sizes = np.tile([[400, 300]], (5000, 1))
    uniform = np.random.default_rng(0).random((5000, 4))
    augment = AugmentConfig(crop_area=(0.25, 0.75), crop_aspect=1.3)
    left, top, width, height = crop_boxes(sizes, augment, uniform).T
    fraction = width * height / (400 * 300)
    assert fraction.max() <= 0.7501
    assert np.median(fraction) == pytest.approx(0.5, abs=0.03)
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 400.001).all()
    assert (top + height <= 300.001).all()


def test_half_of_the_samples_are_mirrored():
    assert flips(0, 1, np.arange(10_000)).mean() == pytest.approx(0.5, abs=0.02)
    assert not np.array_equal(flips(0, 1, np.arange(100)), flips(0, 2, np.arange(100)))


def header_of(width: int, height: int) -> bytes:
    """A JPEG whose header has a larger size than its data."""
    data = bytearray(jpeg(ramp(64, 64)))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


BROKEN = {
    "empty": b"",
    "text": b"nothing",
    "truncated": jpeg(ramp(64, 64))[:-400],
    "header only": jpeg(ramp(64, 64))[:200],
    "bomb": header_of(60_000, 60_000),
    "larger than its data": header_of(640, 640),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_incomplete_jpeg_is_reported_and_the_others_are_decoded(name):
    good = [jpeg(ramp(64, 64)), jpeg(ramp(80, 64))]
    augment = AugmentConfig(randaugment_ops=2)
    pixels, faults = decode_batch([good[0], BROKEN[name], good[1]], np.array([7, 8, 9]), 32, augment=augment)
    expected, no_faults = decode_batch(good, np.array([7, 9]), 32, augment=augment)
    assert list(faults) == [1] and faults[1] and "\n" not in faults[1]
    assert no_faults == {}
    assert np.array_equal(pixels[[0, 2]], expected)


def test_pixels_are_written_to_the_given_array():
    out = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    pixels, _ = decode_batch([jpeg(ramp(64, 64))] * 2, np.arange(2), 32, out=out)
    assert pixels is out
    assert out[0].any() and np.array_equal(out[0], out[1])


@pytest.mark.parametrize(("width", "height"), [(300, 200), (801, 533), (2400, 1597)])
def test_decoding_at_a_smaller_scale_shows_the_same_image(width, height):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    pixels, _ = decode_batch([jpeg(image)], np.array([0]), 64)
    side = 0.95 * height
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    expected = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR, box=box))
    assert np.abs(pixels[0].astype(int) - expected).mean() < 5


def test_tiny_images_are_enlarged():
    assert decode_batch([jpeg(ramp(5, 3))], np.array([0]), 32)[0].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.5])
def test_the_center_crop_has_the_requested_side(crop_pct: float):
    left, top, width, height = crop_boxes(np.array([[300, 200]]), None, None, crop_pct).T
    assert (width[0], height[0]) == pytest.approx((200 * crop_pct, 200 * crop_pct))
    assert (left[0] + width[0] / 2, top[0] + height[0] / 2) == pytest.approx((150, 100))
    pixels = decode_batch([jpeg(ramp(300, 200))], np.array([0]), 200, crop_pct=crop_pct)[0][0].astype(float)
    default = decode_batch([jpeg(ramp(300, 200))], np.array([0]), 200)[0][0].astype(float)
    assert (abs(pixels - default).mean() < 1e-6) == (crop_pct == 0.95)
