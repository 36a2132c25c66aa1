"""Transcoding: images of any format that Pillow reads become upright RGB JPEGs of limited size, as shards store
them."""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from landmark.config import PackingConfig, UserError
from landmark.config.commands.prepare import MAX_SHORT_SIDE
from landmark.data.sources.image_files import (
    RejectedImage,
    decodes_strictly,
    is_heif,
    open_image,
    read_orientation,
    upright,
    without_faults,
)

MIN_SIDE = 8
"""Minimum side, pixels. Smaller images show nothing recognizable."""
MAX_ASPECT_RATIO = 20
"""Maximum ratio of long side to short side. Images beyond it are banners or corrupt."""
MAX_STORED_PIXELS = MAX_ASPECT_RATIO * MAX_SHORT_SIDE**2
"""Maximum pixels of a packed image. A header with more is corrupt."""
FORMATS_WITHOUT_PIXELS = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
"""Formats that Pillow recognizes, but decodes only with another program or not at all."""
GREY_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))
"""Black and white values of grayscale images with more than 8 bits. The first two ranges apply only to floats."""
MEGA = 1_000_000
DECODING_BYTES = 12
"""Approximate maximum memory for decoding and converting, bytes per pixel."""


@dataclass(kw_only=True, frozen=True)
class EncodedImage:
    """An image as shards store it."""

    jpeg: bytes
    """RGB JPEG."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


def pack_image(
    data: bytes, config: PackingConfig, *, name: str = "an image", option: str = "packing.max_megapixels"
) -> EncodedImage:
    """Decode an image, rotate it upright, downscale its short side to config.short_side and encode it as JPEG.

    Grayscale, palette, CMYK, 16-bit and float images become RGB. Transparent images get a white background. The first
    frame of an animation is used. Images are never enlarged. A small upright RGB JPEG is kept byte for byte after a
    full decode, because encoding it again would only lose quality. A file with faulty metadata or a missing end is
    packed if all pixels are there.

    name: the file, for errors. option: the option that limits the pixels, for the reason of a rejection.

    Raises Refused if the file contains no usable image, whatever its decoder raises, and UserError if memory runs out.
    """
    if not data:
        raise RejectedImage("empty file")
    # The header is checked first. This limit also covers images embedded in files.
    Image.MAX_IMAGE_PIXELS = max_pixels = config.max_megapixels * MEGA
    too_large = f"too large ({option} is {config.max_megapixels})"
    try:
        try:
            return _pack(data, config, too_large)
        except (RejectedImage, MemoryError, Image.DecompressionBombError):
            raise
        except Exception:
            whole = without_faults(data, max_pixels)
            if whole is None:
                raise
            return _pack(whole, config, too_large)
    except RejectedImage:
        raise
    except Image.DecompressionBombError:
        raise RejectedImage(too_large) from None
    except UnidentifiedImageError:
        raise RejectedImage("damaged" if is_heif(data) else "not an image") from None
    except MemoryError:
        _check_memory(data, name, option)
        raise RejectedImage("damaged") from None
    except Exception as error:
        # Pillow's plug-ins raise arbitrary errors for corrupt files.
        raise RejectedImage("truncated" if "truncated" in str(error) else "damaged") from None


def _pack(data: bytes, config: PackingConfig, too_large: str) -> EncodedImage:
    max_pixels = config.max_megapixels * MEGA
    with open_image(data) as image:
        _check_header(image, config, too_large)
        is_rgb_jpeg = image.format == "JPEG" and image.mode == "RGB"
        if is_rgb_jpeg and min(image.size) <= config.short_side and read_orientation(image) == 1:
            whole = data if decodes_strictly(data, max_pixels) else without_faults(data, max_pixels)
            if whole is not None:
                return EncodedImage(jpeg=whole, width=image.width, height=image.height)
        return _encode(_upright_rgb(image, config.short_side), config)


def _check_header(image: Image.Image, config: PackingConfig, too_large: str) -> None:
    if image.format in FORMATS_WITHOUT_PIXELS:
        raise RejectedImage(f"{image.format} files are not supported")
    width, height = image.size
    if width * height > config.max_megapixels * MEGA:
        raise RejectedImage(too_large)
    if min(width, height) < MIN_SIDE:
        raise RejectedImage("too small")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RejectedImage("too long")


def _check_memory(data: bytes, name: str, option: str) -> None:
    """Raise UserError if memory is too small for the image. Return if only the file requests more than the image
    requires."""
    try:
        with open_image(data) as image:
            width, height = image.size
    except Exception:
        return
    try:
        np.empty(width * height * DECODING_BYTES, dtype=np.uint8)
    except MemoryError:
        raise UserError(
            f"{name}: out of memory: {width} x {height} pixels take about {width * height * DECODING_BYTES >> 20} MiB "
            f"to decode; give the process more memory, or lower {option}"
        ) from None


def _upright_rgb(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    if scale < 1 and image.format in ("JPEG", "MPO"):
        # Only JPEG can be decoded at a smaller scale. Twice the target size leaves enough pixels for the resize filter.
        image.draft(None, (round(image.width * scale * 2), round(image.height * scale * 2)))
    image.load()
    orientation = read_orientation(image)
    picture = upright(_to_rgb(image), orientation)
    scale = short_side / min(picture.size)
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        result = Image.new("RGB", image.size, "white")
        result.paste(layered, mask=layered.getchannel("A"))
        return result
    try:
        return image.convert("RGB")
    except ValueError:
        raise RejectedImage(f"color mode {image.mode}, which cannot be converted to RGB") from None


def _grey(image: Image.Image) -> np.ndarray:
    """Return a grayscale image of more than 8 bits as uint8 (h, w).

    No file stores its black and white values. The first range of GREY_RANGES that fits is used, else the minimum and
    the maximum. Raises Refused for NaN and infinite values.
    """
    pixels = np.asarray(image)
    if image.mode == "I" and image.format == "TIFF" and _is_unsigned(image):
        pixels = pixels.view(np.uint32)  # Pillow reads them as signed
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite((low, high)).all():
        raise RejectedImage("NaN or infinite pixels")
    for black, white in GREY_RANGES if image.mode == "F" else GREY_RANGES[2:]:
        slack = (white - black) / 20  # filters overshoot
        if low >= black - slack and high <= white + slack:
            low, high = black, white
            break
    grey = np.empty(pixels.shape, dtype=np.uint8)
    scale = 255 / max(high - low, 1e-300)
    for row, values in enumerate(pixels):
        grey[row] = np.clip((values - np.float64(low)) * scale, 0, 255)
    return grey


def _is_unsigned(image: Image.Image) -> bool:
    sample_format = 339
    tags = getattr(image, "tag_v2", {})
    return tags.get(sample_format, (1,)) in (1, (1,))


def _encode(picture: Image.Image, config: PackingConfig) -> EncodedImage:
    pixels = np.ascontiguousarray(picture)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=config.quality, colorspace="RGB", colorsubsampling="420")
    return EncodedImage(jpeg=jpeg, width=picture.width, height=picture.height)
