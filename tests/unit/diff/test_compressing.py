import gzip
import io
import os
from functools import partial

import pytest
import zstandard

from runtimed.diff.compressing import compressor
from runtimed.diff.compression import Compression, detected, uncompressed

DATA = b"".join(os.urandom(100) * 50 for _ in range(200))


def compressed(compression: Compression, *, same_everywhere: bool = False) -> bytes:
    making = compressor(compression, same_everywhere=same_everywhere)
    pieces = [making.compress(DATA[start : start + 70_000]) for start in range(0, len(DATA), 70_000)]
    return b"".join(pieces) + making.flush()


@pytest.mark.parametrize("same_everywhere", [True, False])
@pytest.mark.parametrize("compression", Compression)
def test_what_is_compressed_is_read_again_and_the_same_each_time(compression, same_everywhere):
    out = compressed(compression, same_everywhere=same_everywhere)
    for readable in (uncompressed(io.BytesIO(out), compression), detected(io.BytesIO(out))[1]):
        assert b"".join(iter(partial(readable.read, 1 << 16), b"")) == DATA
    assert compressed(compression, same_everywhere=same_everywhere) == out
    if compression is not Compression.NONE:
        assert len(out) < len(DATA) // 5


def test_other_libraries_agree():
    assert gzip.decompress(compressed(Compression.GZIP)) == DATA
    assert zstandard.ZstdDecompressor().decompressobj().decompress(compressed(Compression.ZSTD)) == DATA


@pytest.mark.parametrize("same_everywhere", [True, False])
def test_a_gzip_header_has_no_time_and_no_name(same_everywhere):
    head = compressed(Compression.GZIP, same_everywhere=same_everywhere)[:8]
    assert head == b"\x1f\x8b\x08" + bytes(5)


def test_short_data_is_detected():
    for data in (b"", b"x", b"\x1f\x8b"):
        assert detected(io.BytesIO(data))[1].read(10) == data
