"""Pictures of any format become what shards hold: upright RGB JPEG, no larger than needed."""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from landmark.config import PackingConfig

LARGEST_PIXELS = 100_000_000
"""Pixels above which a picture is refused: more is a decompression bomb or no photograph."""
SMALLEST_SIDE = 8
"""Pixels; a smaller picture shows nothing."""
LONGEST_RATIO = 20
"""Long side to short side; a longer picture is a banner or a fault."""
ORIENTATION = 0x0112

# The limit above is checked against the header before anything is decoded.
Image.MAX_IMAGE_PIXELS = LARGEST_PIXELS * 2


class Refused(Exception):
    """A file that holds no usable picture; its text is a short reason that can be counted."""


@dataclass(kw_only=True, frozen=True)
class Packed:
    """A picture as it is stored."""

    jpeg: bytes
    """RGB JPEG."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


def pack_image(data: bytes, config: PackingConfig) -> Packed:
    """Decode a picture, turn it upright, shrink its short side to config.short_side, encode it as JPEG.

    Grey, palette, CMYK and 16-bit pictures become RGB, transparent ones are laid on white, of several
    frames the first counts. Never enlarged. An upright RGB JPEG that is small enough is kept byte by byte, once it
    has been decoded in full: encoding it again would only lose quality. Raises Refused.
    """
    if not data:
        raise Refused("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_header(image)
            turned = image.getexif().get(ORIENTATION, 1) != 1
            suits = image.format == "JPEG" and image.mode == "RGB" and not turned
            if suits and min(image.size) <= config.short_side and _decodes(data):
                return Packed(jpeg=data, width=image.width, height=image.height)
            return _encode(_upright_rgb(image, config.short_side), config)
    except Refused:
        raise
    except UnidentifiedImageError:
        raise Refused("not an image") from None
    except Image.DecompressionBombError:
        raise Refused("too large") from None
    except (OSError, ValueError, SyntaxError, TypeError, EOFError, KeyError, IndexError, MemoryError) as error:
        # Pillow's plug-ins raise whatever a damaged file trips over.
        raise Refused("truncated" if "truncated" in str(error) else "damaged") from None


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise Refused("too large")
    if min(width, height) < SMALLEST_SIDE:
        raise Refused("too small")
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise Refused("too long")


def _decodes(data: bytes) -> bool:
    """Return whether the decoder of training takes the whole file without a warning."""
    try:
        simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True)
    except ValueError:
        return False
    return True


def _upright_rgb(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    if scale < 1:
        # JPEG alone can decode at a smaller scale; twice the size leaves the resize enough to filter.
        image.draft(None, (round(image.width * scale * 2), round(image.height * scale * 2)))
    picture = ImageOps.exif_transpose(_to_rgb(image), in_place=False) or image
    scale = short_side / min(picture.size)
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture


def _to_rgb(image: Image.Image) -> Image.Image:
    exif = image.getexif()
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") and pixels.max(initial=0) > 255 else 255.0
        result = Image.fromarray(np.clip(pixels * (255.0 / top), 0, 255).astype(np.uint8)).convert("RGB")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        result = Image.new("RGB", image.size, "white")
        result.paste(layered, mask=layered.getchannel("A"))
    else:
        result = image.convert("RGB")
    if ORIENTATION in exif:
        result.getexif()[ORIENTATION] = exif[ORIENTATION]
    return result


def _encode(picture: Image.Image, config: PackingConfig) -> Packed:
    pixels = np.ascontiguousarray(picture)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=config.quality, colorspace="RGB", colorsubsampling="420")
    return Packed(jpeg=jpeg, width=picture.width, height=picture.height)
