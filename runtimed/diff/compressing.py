"""Compressing a layer as it is written: the same bytes for the same input in the same pieces."""

import zlib
from typing import Protocol, cast

import zstandard

from runtimed.diff.compression import Compression

# What Docker's and containerd's layers have, by and large; higher ones cost far more time than they save space.
_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3


class Compressor(Protocol):
    """Turns data into compressed data, some of it late; :meth:`flush` gives the rest and ends it."""

    def compress(self, data: bytes | memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressor(compression: Compression) -> Compressor:
    """Return a new compressor."""
    match compression:
        case Compression.GZIP:
            # 31: with a gzip header, which zlib writes without a time or a name.
            return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
        case Compression.ZSTD:
            frame = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
            return cast(Compressor, frame)
        case Compression.NONE:
            return _Plain()


class _Plain:
    def compress(self, data: bytes | memoryview, /) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""
