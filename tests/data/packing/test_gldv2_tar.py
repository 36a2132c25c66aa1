"""Tar streams: files in order, and damage reported at the end, with or without a published MD5."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from landmark.config import UserError
from landmark.data.sources.gldv2 import image_id, published_md5
from landmark.data.sources.tar import TarReader
from landmark.data.synthetic.gldv2_files import write_tar
from landmark.storage import locate
from tests.support.web import WebServer

MEMBERS = [(f"a/b/c/{number:016x}.jpg", bytes([number]) * (number * 700)) for number in range(40)]


def read(path: Path | str, md5: str | None = None) -> list[tuple[str, bytes | None]]:
    return list(TarReader(locate(path), md5).members())


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_all_files_are_read_in_order_and_the_md5_covers_the_whole_tar(tmp_path: Path):
    path = write_tar(tmp_path, 7, MEMBERS)
    md5 = published_md5(locate(tmp_path), "train/images_007.tar")
    assert md5 == md5_of(path)
    reader = TarReader(locate(path), md5)
    assert list(reader.members()) == MEMBERS
    assert reader.bytes == path.stat().st_size
    assert published_md5(locate(tmp_path), "train/images_008.tar") is None


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_folders_links_and_long_names_do_not_affect_the_images(tmp_path: Path, form):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("a/b/c")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = tarfile.SYMTYPE, "b"
        tar.addfile(link)
        if form != tarfile.USTAR_FORMAT:
            long = tarfile.TarInfo("d/" * 150 + "ü.txt")
            long.size = 3
            tar.addfile(long, io.BytesIO(b"abc"))
        for name, data in MEMBERS:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [member for member in read(path) if image_id(member[0])] == MEMBERS


def test_damage_is_an_error_that_names_the_tar(tmp_path: Path):
    path = write_tar(tmp_path, 0, MEMBERS)
    complete, md5 = path.read_bytes(), md5_of(path)
    with tarfile.open(path) as tar:
        member_offset = tar.getmembers()[5].offset
    for cut in (member_offset, member_offset + 100, member_offset + 600, len(complete) - 10_240, 0):
        path.write_bytes(complete[:cut])
        with pytest.raises(UserError, match=r"images_000\.tar: truncated after [\d,]+ bytes; download it again"):
            read(path)
        with pytest.raises(UserError, match=r"images_000\.tar: its MD5 is .*truncated.*download it again"):
            read(path, md5)
    flipped = bytearray(complete)
    flipped[member_offset + 600] ^= 1
    path.write_bytes(flipped)
    assert len(read(path)) == len(MEMBERS)
    with pytest.raises(
        UserError, match=rf"images_000\.tar: its MD5 is \w+; expected {md5} as published; download it again"
    ):
        read(path, md5)
    flipped[member_offset : member_offset + 100] = b"\xff" * 100
    path.write_bytes(flipped)
    with pytest.raises(UserError, match=rf"images_000\.tar: corrupt at byte {member_offset:,}"):
        read(path)


def test_a_tar_on_a_web_server_survives_broken_connections(web: WebServer):
    path = write_tar(web.folder, 0, MEMBERS)
    web.breaks = [2000, 100_000, 50_000]
    assert read(web.uri("train/images_000.tar"), md5_of(path)) == MEMBERS
    assert len(web.requests) > 3


@pytest.mark.parametrize("text", ["", "no md5 here", "404: not found"])
def test_an_md5_file_without_an_md5_is_an_error(tmp_path: Path, text):
    write_tar(tmp_path, 0, [])
    (tmp_path / "md5sum/train/md5.images_000.txt").write_text(text)
    with pytest.raises(UserError, match=r"md5\.images_000\.txt: expected an MD5"):
        published_md5(locate(tmp_path), "train/images_000.tar")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b/c/abc0123456789def.jpg", "abc0123456789def"),
        ("./a/b/c/abc0123456789def.jpg", "abc0123456789def"),
        ("abc0123456789def.jpg", "abc0123456789def"),
        ("xabc0123456789def.jpg", None),
        ("ABC0123456789DEF.jpg", None),
        ("abc0123456789def.png", None),
        ("a/._abc0123456789def.jpg", None),
    ],
)
def test_ids_come_from_file_names(name, expected):
    assert image_id(name) == expected
