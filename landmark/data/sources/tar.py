"""Tars read as a stream, one member after the other, with a check at the end and without unpacking to disk."""

import hashlib
import itertools
import tarfile
from collections.abc import Generator, Iterator

from landmark.config import UserError
from landmark.data.loading.prefetch import ordered_prefetch
from landmark.data.sources.resuming_stream import CHUNK_BYTES, ResumingStream
from landmark.data.threads import DaemonPool
from landmark.storage import Location

BLOCK = tarfile.BLOCKSIZE
MAX_MEMBER_BYTES = 512 << 20
"""Maximum size of a member, bytes. Larger files are skipped, because they are not photographs and would have to fit in
memory."""


class TarReader:
    """Reads one tar sequentially.

    Python's tarfile accepts a tar that is truncated between two members. Therefore, headers are parsed here.
    """

    def __init__(self, place: Location, md5: str | None) -> None:
        self.place = place
        self.md5 = md5
        self.bytes = 0
        """Bytes read so far."""

    def members(self) -> Generator[tuple[str, bytes | None], None, None]:
        """Yield name and bytes of each regular file.

        Raises UserError with one line that names the tar if it is truncated or does not match its MD5. Both are known
        at the end. The bytes of a file larger than LARGEST_MEMBER are None.
        """
        with _TarStream(self.place) as tape:
            ended = False
            while (header := tape.take(BLOCK)) and len(header) == BLOCK:
                self.bytes = tape.position
                if not any(header):
                    ended = True
                    break
                info = self._parse(header, tape.position - BLOCK)
                data = None
                if info.size <= MAX_MEMBER_BYTES:
                    data = tape.take(info.size)
                else:
                    tape.skip(info.size)
                if tape.ended or len(tape.take(-info.size % BLOCK)) < -info.size % BLOCK:
                    break
                if info.isreg():
                    yield info.name, data
            tape.drain()
            self.bytes = tape.position
            self._check(tape, ended)

    def _parse(self, header: bytes, position: int) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise UserError(f"{self.place}: corrupt at byte {position:,} ({error}); download it again") from None

    def _check(self, tape: "_TarStream", ended: bool) -> None:
        found = tape.digest.hexdigest()
        if self.md5 is not None and found != self.md5:
            short = "" if ended else f" and it is truncated after {tape.position:,} bytes"
            raise UserError(
                f"{self.place}: its MD5 is {found}; expected {self.md5} as published{short}; download it again"
            )
        if self.md5 is None and not ended:
            raise UserError(f"{self.place}: truncated after {tape.position:,} bytes; download it again")


class _TarStream:
    """The bytes of a file in order, hashed on arrival, with the next chunk prefetched."""

    def __init__(self, place: Location) -> None:
        self.digest = hashlib.md5(usedforsecurity=False)
        self.position = 0
        self.ended = False
        """Whether fewer bytes were available than requested."""
        self._stream = ResumingStream(place)
        self._pool = DaemonPool(1, "landmark-tar")
        self._chunks = ordered_prefetch(lambda _: self._pool.submit(self._fetch, None), itertools.repeat(None), 1)
        self._chunk = memoryview(b"")

    def __enter__(self) -> "_TarStream":
        return self

    def __exit__(self, *exception: object) -> None:
        self._chunks.close()
        self._pool.close()
        self._stream.close()

    def _fetch(self, nothing: None) -> bytes:
        chunk = self._stream.read(CHUNK_BYTES) or b""
        self.digest.update(chunk)
        return chunk

    def _pieces(self, count: int) -> Iterator[memoryview]:
        while count > 0:
            if not self._chunk:
                self._chunk = memoryview(next(self._chunks))
            if not self._chunk:
                self.ended = True
                return
            piece, self._chunk = self._chunk[:count], self._chunk[count:]
            self.position += len(piece)
            count -= len(piece)
            yield piece

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        return b"".join(self._pieces(count))

    def skip(self, count: int) -> None:
        """Skip bytes."""
        for _ in self._pieces(count):
            pass

    def drain(self) -> None:
        """Skip the remaining bytes."""
        while not self.ended:
            self.skip(CHUNK_BYTES)
