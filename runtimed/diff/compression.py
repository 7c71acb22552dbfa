"""Layers as they are stored: which media type is compressed how, and a bounded way to read what is inside.

Nothing here holds more than a few hundred KiB of output (and zstd's window) at a time, whatever the input says.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol, cast

import zstandard
from isal import igzip_lib

from runtimed.errors import InvalidArgument, os_errors

_INPUT_CHUNK = 256 * 1024
# zstd's own default for streams: what its command line takes without --long, and the memory a layer may ask for.
_ZSTD_MAX_WINDOW = 1 << 27

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = 0x184D2A50  # to ...5F

_GzipError = cast(type[Exception], igzip_lib.error)  # its stub declares an instance


class Compression(StrEnum):
    """How a layer's tar archive is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


_OCI = "application/vnd.oci.image.layer.v1.tar"
_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"

_COMPRESSIONS = {
    _OCI: Compression.NONE,
    f"{_OCI}+gzip": Compression.GZIP,
    f"{_OCI}+zstd": Compression.ZSTD,
    f"{_DOCKER}.gzip": Compression.GZIP,
    f"{_DOCKER}.zstd": Compression.ZSTD,
}
_FOREIGN = (
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
)


class Readable(Protocol):
    """What a layer is read from: ``read(n)`` returns up to *n* bytes, b"" at the end."""

    def read(self, size: int, /) -> bytes: ...


def of(media_type: str, start: bytes) -> Compression:
    """Return how a layer of *media_type* whose first bytes are *start* is compressed.

    Docker's plain type says nothing about compression, because old clients pushed compressed layers under it.

    Raises:
        InvalidArgument: not a layer's media type, one that cannot be applied here, or *start* does not agree with it.
    """
    found = by_magic(start)
    if media_type == _DOCKER:
        return found
    declared = _COMPRESSIONS.get(media_type)
    if declared is None:
        raise InvalidArgument(f"media type {media_type[:128]!r} {_why_not(media_type)}")
    if declared is not found:
        raise InvalidArgument(f"a layer of media type {media_type!r} holds data with compression {str(found)!r}")
    return declared


def _why_not(media_type: str) -> str:
    if media_type.endswith("+encrypted"):
        return "is an encrypted layer; decrypt the image first, there are no keys here"
    if media_type.startswith(_FOREIGN):
        return "is a foreign layer, which images may not bring along; rebuild the image with its base included"
    return "is not a layer that can be applied; known are OCI and Docker layers, plain or with gzip or zstd"


@contextmanager
def opened(blob: Path, media_type: str) -> Iterator[Readable]:
    """Hold the layer *blob* open for reading its uncompressed tar archive.

    Reading raises InvalidArgument where the compressed data is damaged, truncated or followed by something else.

    Raises:
        NotFound: there is no such blob.
        InvalidArgument: see :func:`of`.
    """
    with os_errors(f"layer {blob.name}"):
        file = blob.open("rb", buffering=0)
    with file:
        yield stream(file, media_type)


def stream(file: Readable, media_type: str) -> Readable:
    """Return the uncompressed tar archive of the layer of *media_type* in *file*, which stays the caller's to close.

    Raises as :func:`opened`.
    """
    start = _start(file)
    return uncompressed(_Prefixed(start, file), of(media_type, start))


def by_magic(start: bytes) -> Compression:
    """Return how the data that begins with *start* is compressed, as far as it shows."""
    if start.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if start.startswith(_ZSTD_MAGIC) or (len(start) >= 4 and _is_skippable(start)):
        return Compression.ZSTD
    return Compression.NONE


def detected(file: Readable) -> tuple[Compression, Readable]:
    """Return how *file* is compressed, and its uncompressed contents."""
    start = _start(file)
    kind = by_magic(start)
    return kind, uncompressed(_Prefixed(start, file), kind)


def _start(file: Readable) -> bytes:
    start = b""
    while len(start) < 4 and (piece := file.read(4 - len(start))):
        start += piece
    return start


class _Prefixed:
    """A file with bytes that have been read from it put back."""

    def __init__(self, start: bytes, file: Readable) -> None:
        self._start = start
        self._file = file

    def read(self, size: int, /) -> bytes:
        if self._start:
            start, self._start = self._start[:size], self._start[size:]
            return start
        return self._file.read(size)


def uncompressed(file: Readable, compression: Compression) -> Readable:
    """Return the uncompressed contents of *file*, which stays the caller's to close."""
    match compression:
        case Compression.NONE:
            return file
        case Compression.GZIP:
            return _Gunzip(file)
        case Compression.ZSTD:
            return _Unzstd(file)


class _Gunzip:
    """Any number of gzip members, one after the other (RFC 1952), and nothing else."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._member = _new_member()
        self._is_fresh = True  # the current member has had no input
        self._is_first = True

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._member.needs_input or self._member.eof:
                data = self._next_input()
                if not data:
                    if self._is_fresh and not self._is_first:
                        return b""
                    raise InvalidArgument("gzip: the data is truncated")
            try:
                out = self._member.decompress(data, size)
            except _GzipError as exc:
                what = "" if self._is_first else " (after a complete member: is there other data behind it?)"
                raise InvalidArgument(f"gzip: the data is damaged: {exc}{what}") from exc
            self._is_fresh = False
            if out:
                return out

    def _next_input(self) -> bytes:
        if not self._member.eof:
            return self._file.read(_INPUT_CHUNK)
        rest: bytes = self._member.unused_data
        self._member = _new_member()
        self._is_fresh, self._is_first = True, False
        return rest or self._file.read(_INPUT_CHUNK)


def _new_member() -> igzip_lib.IgzipDecompressor:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


class _Unzstd:
    """Any number of zstd frames (RFC 8878), skippable ones among them, and nothing else.

    The decompressor gets one block at a time: a block yields 128 KiB at most, while a chunk of input made of
    run-length blocks would become gigabytes at once.
    """

    def __init__(self, file: Readable) -> None:
        self._pieces = _zstd_pieces(_Exactly(file))
        self._context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW)
        self._frame = self._context.decompressobj()
        self._out = b""

    def read(self, size: int, /) -> bytes:
        while not self._out:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            try:
                self._out = self._frame.decompress(piece)
            except zstandard.ZstdError as exc:
                raise InvalidArgument(f"zstd: the data is damaged, or needs too much memory: {exc}") from exc
            if self._frame.eof:
                self._frame = self._context.decompressobj()
        out, self._out = self._out[:size], self._out[size:]
        return out


class _Exactly:
    """Reads as many bytes as are asked for, from a file in large chunks."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._chunk = b""
        self._pos = 0

    def read(self, count: int) -> bytes:
        """Return *count* bytes, or fewer at the end of the file."""
        end = self._pos + count
        if end > len(self._chunk):
            parts = [self._chunk[self._pos :]]
            missing = count - len(parts[0])
            while missing > 0 and (chunk := self._file.read(_INPUT_CHUNK)):
                parts.append(chunk)
                missing -= len(chunk)
            self._chunk = b"".join(parts)
            self._pos, end = 0, count
        data = self._chunk[self._pos : end]
        self._pos = min(end, len(self._chunk))
        return data


def _zstd_pieces(source: _Exactly) -> Iterator[bytes]:
    """Yield each frame's header, blocks and checksum in turn, leaving out skippable frames (RFC 8878, section 3.1)."""

    def need(count: int) -> bytes:
        data = source.read(count)
        if len(data) < count:
            raise InvalidArgument("zstd: the data is truncated")
        return data

    while magic := source.read(4):
        if len(magic) < 4:
            raise InvalidArgument("zstd: the data is truncated, or followed by something else")
        if _is_skippable(magic):
            left = int.from_bytes(need(4), "little")
            while left:
                left -= len(need(min(left, _INPUT_CHUNK)))
            continue
        if magic != _ZSTD_MAGIC:
            raise InvalidArgument("zstd: the data is damaged, or followed by something else")
        yield from _frame_pieces(magic, need)


def _frame_pieces(magic: bytes, need: Callable[[int], bytes]) -> Iterator[bytes]:
    descriptor = need(1)
    flags = descriptor[0]
    is_single_segment = bool(flags & 0x20)
    content_size_bytes = (1 if is_single_segment else 0, 2, 4, 8)[flags >> 6]
    dictionary_id_bytes = (0, 1, 2, 4)[flags & 3]
    yield magic + descriptor + need((not is_single_segment) + dictionary_id_bytes + content_size_bytes)
    is_last = False
    while not is_last:
        header = need(3)
        value = int.from_bytes(header, "little")
        is_last = bool(value & 1)
        is_run = value >> 1 & 3 == 1  # one byte, repeated
        yield header + need(1 if is_run else value >> 3)
    if flags & 4:
        yield need(4)


def _is_skippable(magic: bytes) -> bool:
    return int.from_bytes(magic[:4], "little") & 0xFFFFFFF0 == _ZSTD_SKIPPABLE
