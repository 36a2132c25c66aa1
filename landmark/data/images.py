"""Pictures of any format that Pillow reads become what shards hold: upright RGB JPEG, no larger than needed."""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from landmark.config import PackingConfig, UserError
from landmark.config.dataset import LARGEST_SHORT_SIDE
from landmark.data.image_files import (
    Refused,
    decodes_strictly,
    is_heif,
    open_image,
    read_orientation,
    upright,
    without_faults,
)

SMALLEST_SIDE = 8
"""Pixels; a smaller picture shows nothing."""
LONGEST_RATIO = 20
"""Long side to short side; a longer picture is a banner or a fault."""
LARGEST_STORED_PIXELS = LONGEST_RATIO * LARGEST_SHORT_SIDE**2
"""Pixels of a packed image at most: more is a damaged header."""
FORMATS_WITHOUT_PIXELS = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
"""Formats that Pillow recognises, but reads only by another program, or not at all."""
GREY_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))
"""Values of black and white that grey pictures of more than 8 bits may use, the first two for floats only."""
MEGA = 1_000_000
DECODING_BYTES = 12
"""Bytes of memory per pixel that decoding and converting take at most, about."""


@dataclass(kw_only=True, frozen=True)
class Packed:
    """A picture as it is stored."""

    jpeg: bytes
    """RGB JPEG."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


def pack_image(
    data: bytes, config: PackingConfig, *, name: str = "an image", option: str = "packing.max_megapixels"
) -> Packed:
    """Decode a picture, turn it upright, shrink its short side to config.short_side, encode it as JPEG.

    Grey, palette, CMYK, 16-bit and float pictures become RGB, transparent ones are laid on white, of several
    frames the first counts. Never enlarged. An upright RGB JPEG that is small enough is kept byte by byte, once it
    has been decoded in full: encoding it again would only lose quality. A file whose metadata or end is faulty is
    packed if all of its pixels are there.

    name: the file's, for errors. option: the name of the limit of pixels, for the reason of a refusal. Raises Refused
    for a file that holds no usable picture, whatever its decoder raises, and UserError if memory runs out.
    """
    if not data:
        raise Refused("empty file")
    # Second line of defence, for pictures within files: the header is checked first.
    Image.MAX_IMAGE_PIXELS = max_pixels = config.max_megapixels * MEGA
    too_large = f"too large ({option} is {config.max_megapixels})"
    try:
        try:
            return _pack(data, config, too_large)
        except (Refused, MemoryError, Image.DecompressionBombError):
            raise
        except Exception:
            whole = without_faults(data, max_pixels)
            if whole is None:
                raise
            return _pack(whole, config, too_large)
    except Refused:
        raise
    except Image.DecompressionBombError:
        raise Refused(too_large) from None
    except UnidentifiedImageError:
        raise Refused("damaged" if is_heif(data) else "not an image") from None
    except MemoryError:
        _check_memory(data, name, option)
        raise Refused("damaged") from None
    except Exception as error:
        # Pillow's plug-ins raise whatever a damaged file trips over.
        raise Refused("truncated" if "truncated" in str(error) else "damaged") from None


def _pack(data: bytes, config: PackingConfig, too_large: str) -> Packed:
    max_pixels = config.max_megapixels * MEGA
    with open_image(data) as image:
        _check_header(image, config, too_large)
        is_rgb_jpeg = image.format == "JPEG" and image.mode == "RGB"
        if is_rgb_jpeg and min(image.size) <= config.short_side and read_orientation(image) == 1:
            whole = data if decodes_strictly(data, max_pixels) else without_faults(data, max_pixels)
            if whole is not None:
                return Packed(jpeg=whole, width=image.width, height=image.height)
        return _encode(_upright_rgb(image, config.short_side), config)


def _check_header(image: Image.Image, config: PackingConfig, too_large: str) -> None:
    if image.format in FORMATS_WITHOUT_PIXELS:
        raise Refused(f"{image.format} files are not read")
    width, height = image.size
    if width * height > config.max_megapixels * MEGA:
        raise Refused(too_large)
    if min(width, height) < SMALLEST_SIDE:
        raise Refused("too small")
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise Refused("too long")


def _check_memory(data: bytes, name: str, option: str) -> None:
    """Raise UserError if there is no memory for a picture; return if only its file asks for more than it can need."""
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
        # JPEG alone can decode at a smaller scale; twice the size leaves the resize enough to filter.
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
        raise Refused(f"colours of kind {image.mode}, which cannot be converted to RGB") from None


def _grey(image: Image.Image) -> np.ndarray:
    """Return a grey picture of more than 8 bits as uint8 (h, w).

    Which values are black and white is stored nowhere: the first of GREY_RANGES that fits, else the minimum and the
    maximum. Raises Refused for NaN and infinite values.
    """
    pixels = np.asarray(image)
    if image.mode == "I" and image.format == "TIFF" and _is_unsigned(image):
        pixels = pixels.view(np.uint32)  # Pillow reads them as signed
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite((low, high)).all():
        raise Refused("NaN or infinite pixels")
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


def _encode(picture: Image.Image, config: PackingConfig) -> Packed:
    pixels = np.ascontiguousarray(picture)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=config.quality, colorspace="RGB", colorsubsampling="420")
    return Packed(jpeg=jpeg, width=picture.width, height=picture.height)
