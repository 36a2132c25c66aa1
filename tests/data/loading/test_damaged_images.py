"""Damaged and unusual image files: each is packed or rejected with a reason, and complete pixels are kept."""

import functools
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from landmark.config import FoldersConfig, PackingConfig, PrepareConfig
from landmark.data.loading.jpeg import decode_batch
from landmark.data.packing.plan import load_or_make
from landmark.data.packing.sources import folder_source
from landmark.data.packing.worker import Packer
from landmark.data.sources import image_files
from landmark.data.sources.image_files import RejectedImage
from landmark.data.sources.transcode import pack_image
from landmark.inference.sources import FolderImages
from landmark.storage import locate
from tests.data.sources.test_transcode import encoded, halves

CONFIG = PackingConfig(short_side=64)
REASONS = {"damaged", "truncated", "not an image", "too small", "too long", "NaN or infinite pixels"}
EVERY_FORMAT = (
    *("AVIF", "BLP", "BMP", "DDS", "DIB", "GIF", "HEIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MPO", "MSP", "PCX"),
    *("PNG", "PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF", "WEBP", "XBM"),
)
SAVED_AS = {"BLP": "P", "MSP": "1", "XBM": "1", "SPIDER": "F"}
SHORT, ASCII, LONG, RATIONAL = 3, 2, 4, 5
ORIENTATION_ROTATE_90 = 6


def entry(tag: int, kind: int, value: bytes, count: int = 1) -> bytes:
    """Return an EXIF entry whose value is stored inline."""
    return struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0")


def exif_block(*entries: bytes, more: bytes = b"") -> bytes:
    """Return an EXIF block with these entries in order."""
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(entries) + b"\0" * 4 + more


ROTATED = entry(0x0112, SHORT, struct.pack(">H", ORIENTATION_ROTATE_90))
UNUSUAL_BLOCKS = {
    "width as text": exif_block(entry(0x0100, ASCII, b"120", 4), ROTATED),
    "software as rational": exif_block(
        ROTATED, entry(0x0131, RATIONAL, struct.pack(">I", 38)), more=struct.pack(">II", 2, 1)
    ),
    "a value far beyond the block": exif_block(entry(0x010F, ASCII, struct.pack(">I", 1 << 30), 1 << 20), ROTATED),
    "an unknown kind": exif_block(entry(0x0110, 77, b"abcd"), ROTATED),
}


def with_exif(kind: str, block: bytes) -> bytes:
    """Return an image that is wider than high with this raw EXIF block. AVIF stores the rotation itself."""
    if kind != "AVIF":
        return encoded(halves(), kind, exif=block)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = ORIENTATION_ROTATE_90, "#" * 400
    data = encoded(halves(), kind, exif=exif)
    start = data.index(b"#" * 400) - 26
    assert data[start : start + 4] in (b"MM\0*", b"II*\0")
    return data[:start] + block[6:] + data[start + len(block) - 6 :]


def packed_or_rejected(data: bytes) -> str:
    """Return "packed" or the reason of the rejection. Any other exception propagates."""
    try:
        packed = pack_image(data, CONFIG)
    except RejectedImage as rejected:
        return str(rejected)
    assert simplejpeg.decode_jpeg(packed.jpeg).shape == (packed.height, packed.width, 3)
    return "packed"


@functools.cache
def sample(kind: str) -> bytes:
    image_files.register_heif()
    return encoded(halves(60, 48).convert(SAVED_AS.get(kind, "RGB")), kind)


def test_every_format_that_pillow_reads_and_writes_is_fuzzed():
    image_files.register_heif()
    Image.init()
    without_pixels = {"EPS", "WMF", "BUFR", "GRIB", "HDF5"}
    assert set(EVERY_FORMAT) == (set(Image.SAVE) & (set(Image.OPEN) | {"MPO"})) - without_pixels


@pytest.mark.parametrize("kind", EVERY_FORMAT)
def test_corrupt_or_truncated_files_are_packed_or_rejected_with_a_reason(kind):
    data = sample(kind)
    assert packed_or_rejected(data) == "packed"
    rng = random.Random(kind)
    for _ in range(20 if kind == "ICNS" else 120):
        changed = bytearray(data)
        changed[int(rng.random() ** 2 * len(data))] = rng.randrange(256)  # change headers more often
        candidate = bytes(changed) if rng.random() < 0.8 else data[: rng.randrange(len(data))]
        found = packed_or_rejected(candidate)
        assert found in {"packed", "empty file"} | REASONS or found.startswith(
            "too large (packing.max_megapixels is"
        ), found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_corrupt_exif_never_causes_a_rejection(kind):
    image_files.register_heif()
    block = exif_block(
        entry(0x0100, LONG, struct.pack(">I", 120)),
        entry(0x010F, ASCII, struct.pack(">I", 62), 16),
        ROTATED,
        entry(0x011A, RATIONAL, struct.pack(">I", 78)),
        more=b"maker of things\0" + struct.pack(">II", 72, 1),
    )
    data = with_exif(kind, block)
    start = data.index(b"maker of things") - block.index(b"maker of things") + 6
    rng = random.Random(kind)
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            changed[start + rng.randrange(len(block) - 6)] = rng.randrange(256)
        if kind == "PNG":
            chunk = changed.index(b"eXIf")
            end = chunk + 4 + int.from_bytes(changed[chunk - 4 : chunk])
            changed[end : end + 4] = zlib.crc32(changed[chunk:end]).to_bytes(4)
        assert packed_or_rejected(bytes(changed)) == "packed"


@pytest.mark.parametrize("name", UNUSUAL_BLOCKS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_image_with_unusual_exif_is_packed_and_rotated(kind, name):
    packed = pack_image(with_exif(kind, UNUSUAL_BLOCKS[name]), CONFIG)
    assert packed.height > packed.width
    pixels = simplejpeg.decode_jpeg(packed.jpeg)
    assert pixels[5, 5, 0] > 150 and pixels[-5, -5, 2] > 150


@pytest.mark.parametrize("block", [b"Exif\0\0" + b"\xff\xe1 no header", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_image_with_exif_without_a_header_is_packed(kind, block):
    packed = pack_image(with_exif(kind, block), CONFIG)
    assert (packed.width > packed.height) == (kind != "AVIF")


def jpeg_with(*segments: tuple[int, bytes], image: Image.Image | None = None) -> bytes:
    """Return a JPEG with additional segments."""
    more = b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments)
    return b"\xff\xd8" + more + encoded(image or halves(), "JPEG", quality=95)[2:]


@pytest.mark.parametrize(
    "segment",
    [
        (0xE0, b"JFIF"),
        (0xEE, b"Adobe"),
        (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\x01\xb0\x00\0\x07\0\0\0\x04" + b"0100\0\0\0\0"),
        (0xED, b"Photoshop 3.0\x008BIM"),
    ],
)
def test_a_jpeg_with_broken_metadata_is_packed(segment):
    rotated = pack_image(jpeg_with(segment, (0xE1, UNUSUAL_BLOCKS["width as text"])), CONFIG)
    assert rotated.height > rotated.width
    assert packed_or_rejected(jpeg_with(segment)) == "packed"


def photograph(side: int) -> Image.Image:
    """A noise image: its last rows cannot be decoded without their data."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side + 20, 3), np.uint8))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("side", [50, 300], ids=["unchanged", "downscaled"])
def test_a_jpeg_is_packed_without_its_end_marker_but_not_without_pixels(side, progressive):
    data = encoded(photograph(side), "JPEG", quality=90, progressive=progressive)
    complete = pack_image(data, CONFIG).jpeg
    for end in (-1, -2):
        packed = pack_image(data[:end], CONFIG)
        assert packed.jpeg == complete and packed.jpeg.endswith(b"\xff\xd9")
        assert not decode_batch([packed.jpeg], np.array([0]), 32)[1]
    for end in (-8, -60, -len(data) // 3, 700 - len(data)):
        assert packed_or_rejected(data[:end]) == "truncated"


def test_a_progressive_jpeg_that_ends_between_two_scans_is_truncated():
    data = encoded(photograph(200), "JPEG", progressive=True)
    last_scan = data.rindex(b"\xff\xda")
    tables = data.rfind(b"\xff\xc4", 0, last_scan)
    assert data.rindex(b"\xff\xda", 0, last_scan) < tables
    assert packed_or_rejected(data[:tables]) == "truncated"


class _RaisingDecoder(ImageFile.ImageFile):
    """A decoder that raises a given error."""

    format = "TRIP"
    error: BaseException

    def _open(self) -> None:
        self._size, self._mode = (60, 48), "RGB"
        self.tile = [ImageFile._Tile("raw", (0, 0, 60, 48), 0, "RGB")]

    def load(self):
        raise self.error


class _CustomError(Exception):
    """A custom exception class without a message."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("codec"),
        AttributeError("x"),
        struct.error(),
        _CustomError(),
        RecursionError(),
        MemoryError(),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_decoder_error_rejects_only_that_image(error, monkeypatch, tmp_path):
    Image.init()
    monkeypatch.setitem(Image.OPEN, "TRIP", (_RaisingDecoder, lambda prefix: prefix.startswith(b"TRIP")))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "TRIP"])
    monkeypatch.setattr(_RaisingDecoder, "error", error, raising=False)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "complete.jpg").write_bytes(jpeg_with((0xE1, UNUSUAL_BLOCKS["width as text"])))
    (tmp_path / "photos" / "b" / "odd.jpg").write_bytes(b"TRIP" + b"\0" * 20)
    folders = FoldersConfig(path=str(tmp_path / "photos"))
    config = PrepareConfig(output=str(tmp_path / "out"), source="folders", folders=folders)
    output, source = locate(config.output), folder_source(str(tmp_path / "photos"), None)
    plan = load_or_make(output, source, config)
    results = [Packer(output, source, config.packing, plan.plan_id).pack(task) for task in plan.tasks]
    assert sum(part["rows"] for part in results) == 2 and sum(part["rejects"] for part in results) == 1
    reader = FolderImages.of(locate(str(tmp_path / "photos"))).open(32, 8)
    (batch,) = reader.batches(0, 1)
    assert len(batch.images) == 2 and reader.rejects == [("b/odd.jpg", "damaged")]


def test_a_keyboard_interrupt_is_not_treated_as_a_damaged_file(monkeypatch):
    Image.init()
    monkeypatch.setitem(Image.OPEN, "TRIP", (_RaisingDecoder, lambda prefix: prefix.startswith(b"TRIP")))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "TRIP"])
    monkeypatch.setattr(_RaisingDecoder, "error", KeyboardInterrupt(), raising=False)
    with pytest.raises(KeyboardInterrupt):
        pack_image(b"TRIP" + b"\0" * 20, CONFIG)


LOW_MEMORY_SCRIPT = """
import io, resource, sys
from PIL import Image
from landmark.config import PackingConfig, UserError
from landmark.data.sources.transcode import pack_image
from landmark.data.sources.image_files import RejectedImage
buffer = io.BytesIO()
Image.new("RGB", (6000, 5000)).save(buffer, "PNG", compress_level=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), used + (60 << 20)))
try:
    pack_image(buffer.getvalue(), PackingConfig(), name="photos/a/large.png")
except UserError as error:
    print(error)
"""


def test_out_of_memory_is_an_error_with_the_file_name_and_no_rejection():
    done = subprocess.run([sys.executable, "-c", LOW_MEMORY_SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "photos/a/large.png: out of memory: 6000 x 5000 pixels take about 343 MiB to decode; "
        "give the process more memory, or lower packing.max_megapixels\n"
    )


def test_warnings_of_decoders_are_not_printed():
    script = (
        "import sys; from landmark.data.sources.transcode import pack_image\n"
        "from landmark.config import PackingConfig\n"
        "pack_image(sys.stdin.buffer.read(), PackingConfig())"
    )
    truncated = exif_block(entry(0x010F, ASCII, struct.pack(">I", 1 << 30), 1 << 20), ROTATED)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, input=with_exif("PNG", truncated), capture_output=True, check=True)
    assert not done.stderr


def test_the_pixel_limit_is_an_option_and_named_in_the_rejection(monkeypatch):
    data = encoded(Image.new("1", (2000, 1500)), "PNG")
    assert pack_image(data, PackingConfig(max_megapixels=3)).height == 288
    with pytest.raises(RejectedImage, match=r"^too large \(packing.max_megapixels is 2\)$"):
        pack_image(data, PackingConfig(max_megapixels=2))
    with pytest.raises(RejectedImage, match=r"^too large \(max_megapixels is 1\)$"):
        pack_image(data, PackingConfig(max_megapixels=1), option="max_megapixels")
    damaged = jpeg_with((0xE0, b"JFIF"), image=Image.new("RGB", (2000, 1500)))
    assert pack_image(damaged, PackingConfig(max_megapixels=3)).height == 288
    decoded = []
    monkeypatch.setattr(image_files.simplejpeg, "decode_jpeg", lambda *arguments, **options: decoded.append(arguments))
    with pytest.raises(RejectedImage, match=r"^too large"):
        pack_image(damaged, PackingConfig(max_megapixels=2))
    assert not decoded, "an image that is too large is not decoded, even if its metadata is corrupt"
    monkeypatch.undo()
    larger = encoded(Image.new("1", (12_000, 9_000)), "PNG")
    assert pack_image(larger, PackingConfig(max_megapixels=108)).height == 288


def test_heic_is_read_and_rejected_without_its_package(monkeypatch):
    data = sample("HEIF")
    pixels = simplejpeg.decode_jpeg(pack_image(data, CONFIG).jpeg)
    assert pixels.shape == (48, 60, 3) and pixels[24, 10, 0] > 150 and pixels[24, 50, 2] > 150
    image_files.register_heif.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(RejectedImage, match=r"^HEIC, which requires the package pillow-heif \(extra heic\)$"):
            pack_image(data, CONFIG)
    image_files.register_heif.cache_clear()


RAMP = np.tile(np.linspace(0, 1, 120), (80, 1))


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (RAMP, "F"),
        (RAMP * 1.02 - 0.01, "F"),
        (RAMP * 255, "F"),
        (RAMP * 65535, "F"),
        (RAMP * 2 - 1, "F"),
        (RAMP * 1e6 - 3e5, "F"),
        (RAMP * 255, "I;16"),
        (RAMP * 65535, "I;16"),
        (RAMP * 255, "I"),
        (RAMP * 65535, "I"),
        (RAMP * (2**31 - 1), "I"),
        (RAMP * 2**31 - 2**30, "I"),
    ],
)
def test_grayscale_of_any_range_keeps_its_brightness(pixels, mode):
    kind = {"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]
    image = Image.fromarray(pixels.astype(kind))
    assert image.mode == mode
    assert_is_ramp(encoded(image, "TIFF"))


def test_unsigned_32_bit_grayscale_keeps_its_brightness():
    image = Image.fromarray((RAMP * (2**32 - 1)).astype(np.uint32).view(np.int32))
    signed = encoded(image, "TIFF")
    entries = [struct.pack("<HHIH", 339, SHORT, 1, sample_format) for sample_format in (2, 1)]
    assert entries[0] in signed
    assert_is_ramp(signed.replace(*entries))


def assert_is_ramp(data: bytes) -> None:
    gray = simplejpeg.decode_jpeg(pack_image(data, CONFIG).jpeg, "GRAY")[32, :, 0].astype(float)
    assert np.abs(gray - np.linspace(0, 255, len(gray))).max() < 12


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_grayscale_is_rejected(value):
    pixels = RAMP.astype(np.float32)
    pixels[3, 4] = value
    with pytest.raises(RejectedImage, match="^NaN or infinite pixels$"):
        pack_image(encoded(Image.fromarray(pixels), "TIFF"), CONFIG)


def test_an_unsupported_format_is_named_in_the_rejection():
    assert packed_or_rejected(encoded(halves(), "EPS")) == "EPS files are not supported"
