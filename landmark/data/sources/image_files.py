"""Opening of users' image files, including HEIC (extra heic) and files with faulty metadata but complete pixels."""

import functools
import io
import re
import struct
import warnings
from collections.abc import Mapping

import simplejpeg
from PIL import Image

ORIENTATION = 0x0112
"""EXIF tag."""
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that makes an image upright, by EXIF orientation."""

# A warning names no file. Errors matter, and become rejects with their reason.
warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\.")


class RejectedImage(Exception):
    """A file without a usable image. The text is a short reason that can be counted."""


def fault_of(error: Exception) -> str:
    """Return a decoder's error as one line. Raises MemoryError again, because it is not a fault of the image."""
    if isinstance(error, MemoryError):
        raise error
    return " ".join(str(error).split()) or type(error).__name__


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Return reasons of rejections with their counts as one line, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)


def open_image(data: bytes) -> Image.Image:
    """Open an image file of any format that Pillow reads, or HEIC with the extra `heic`.

    Raises Refused for HEIC without that extra, UnidentifiedImageError for an unknown format, and any error of Pillow's
    decoders for a corrupt file.
    """
    heic = is_heif(data) and data[8:12] not in AVIF_BRANDS
    if heic and not register_heif():
        raise RejectedImage("HEIC, which requires the package pillow-heif (extra heic)")
    return Image.open(io.BytesIO(data))


def is_heif(data: bytes) -> bool:
    """Return whether data starts like an AVIF or HEIC file."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS | AVIF_BRANDS


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image transposed according to its EXIF orientation."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def read_orientation(image: Image.Image) -> int:
    """Return an image's EXIF orientation, 1 to 8. Returns 1 if its EXIF block has none or cannot be read.

    Other tags are ignored, because faulty values in them do not affect the pixels. Pillow transposes TIFF while it
    loads, so load the image first.
    """
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:
        value = None
    if value is None and image.format != "TIFF":
        value = _find_orientation(image.info.get("exif") or b"")
    return value if isinstance(value, int) and value in TURNS else 1


def _find_orientation(exif: bytes) -> int | None:
    """Return the orientation of an EXIF block from its entry only, because Pillow stops at the first corrupt entry."""
    block = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, start)
        for position in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", block, position)
            if (tag, kind, count) == (ORIENTATION, 3, 1):
                return value
    except struct.error:
        pass
    return None


def without_faults(data: bytes, max_pixels: int) -> bytes | None:
    """Return an image file without its metadata and with an end marker, for a file that failed to decode.

    Returns None if that cannot help. The orientation is kept if it can be read. A JPEG is returned only if all pixels
    are there. A JPEG of more than max_pixels is not decoded to check that, because it is rejected by its header.
    """
    if data.startswith(b"\xff\xd8"):
        return _clean_jpeg(data, max_pixels)
    if is_heif(data):
        # AVIF and HEIC store the orientation outside of EXIF. Decoders ignore an item of an unknown type.
        cleaned = re.sub(rb"(infe.{8})Exif", rb"\1skip", data, flags=re.DOTALL)
        return cleaned if cleaned != data else None
    return None


def decodes_strictly(data: bytes, max_pixels: int) -> bool:
    """Return whether the training decoder decodes the JPEG without a warning. If it is too large, only the header is
    checked."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if width * height > max_pixels:
            return True
        simplejpeg.decode_jpeg(
            data, "CMYK" if colorspace in ("CMYK", "YCCK") else "RGB", fastdct=True, fastupsample=True
        )
    except Exception as error:
        fault_of(error)
        return False
    return True


@functools.cache
def register_heif() -> bool:
    """Register HEIC with Pillow. Returns whether the package for it is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _clean_jpeg(data: bytes, max_pixels: int) -> bytes | None:
    """Return a JPEG with its orientation as its only metadata and an end marker. None if pixels are missing."""
    position, kept = 2, [b"\xff\xd8"]
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            break
        segment = data[position : position + 2 + int.from_bytes(data[position + 2 : position + 4])]
        if _is_needed(marker, segment[4:]):
            kept.append(segment)
        position += len(segment)
    scans = data[position:]
    if b"\xff\xd9" not in scans:
        scans = scans.removesuffix(b"\xff") + b"\xff\xd9"
    cleaned = b"".join(kept) + scans
    return cleaned if _has_all_scans(cleaned) and decodes_strictly(cleaned, max_pixels) else None


def _is_needed(marker: int, payload: bytes) -> bool:
    """Return whether a JPEG segment affects the pixels or the orientation."""
    if marker == 0xE1:
        return payload.startswith(b"Exif\x00\x00")
    if marker == 0xE0:
        return payload.startswith(b"JFIF") and len(payload) >= 14
    if marker == 0xEE:  # Adobe segment: color transform
        return payload.startswith(b"Adobe") and len(payload) >= 12
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans of a JPEG contain all bits of all coefficients of all components.

    The decoder does not report missing scans. A progressive file that ends between two scans only looks coarse.
    """
    missing_bits: dict[int, list[int]] = {}
    position = 2
    while (found := re.compile(rb"\xff[\x01-\xcf\xda-\xfe]").search(data, position)) is not None:
        marker, start = data[found.start() + 1], found.end()
        payload = data[start + 2 : start + int.from_bytes(data[start : start + 2])]
        position = max(start + 2, start + 2 + len(payload))
        try:
            if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                missing_bits = {payload[6 + 3 * number]: [99] * 64 for number in range(payload[5])}
            elif marker == 0xDA:
                first, last, bits = struct.unpack_from("BBB", payload, 1 + 2 * payload[0])
                for number in range(payload[0]):
                    missing_bits[payload[1 + 2 * number]][first : last + 1] = [bits & 15] * (last + 1 - first)
        except (IndexError, KeyError, struct.error):
            return False
    return bool(missing_bits) and not any(map(any, missing_bits.values()))
