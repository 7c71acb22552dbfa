import contextlib
import gzip
import io
import os
import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from runtimed.diff.compression import Compression, Readable, of, opened, uncompressed
from runtimed.errors import InvalidArgument, NotFound

OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
DATA = os.urandom(200_000) + bytes(700_000) + b"text " * 60_000


def zstd(data: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def read_all(stream: Readable, size: int = 65536) -> bytes:
    parts = []
    while part := stream.read(size):
        assert len(part) <= size
        parts.append(part)
    return b"".join(parts)


class Trickle(io.BytesIO):
    """A file that returns little at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 777))


@pytest.mark.parametrize("source", [io.BytesIO, Trickle])
@pytest.mark.parametrize(
    ("compression", "stored"),
    [
        (Compression.NONE, DATA),
        (Compression.GZIP, gzip.compress(DATA)),
        (Compression.GZIP, gzip.compress(DATA[:1000]) + gzip.compress(b"") + gzip.compress(DATA[1000:])),
        (Compression.ZSTD, zstd(DATA)),
        (Compression.ZSTD, zstd(DATA, write_checksum=True, write_content_size=False)),
        (Compression.ZSTD, zstd(DATA[:1000]) + struct.pack("<II", 0x184D2A5E, 5) + b"12345" + zstd(DATA[1000:])),
        (Compression.ZSTD, struct.pack("<II", 0x184D2A50, 0) + zstd(DATA) + zstd(b"")),
    ],
)
def test_what_was_compressed_comes_back(compression, stored, source):
    assert read_all(uncompressed(source(stored), compression)) == DATA


@pytest.mark.parametrize("cut", [1, 5, 9, 1000])
@pytest.mark.parametrize(
    ("compression", "stored"),
    [
        (Compression.GZIP, gzip.compress(DATA)),
        (Compression.ZSTD, zstd(DATA, write_checksum=True)),
        (Compression.ZSTD, zstd(DATA)),
    ],
)
def test_truncated_data_is_refused(compression, stored, cut):
    with pytest.raises(InvalidArgument, match="truncated"):
        read_all(uncompressed(io.BytesIO(stored[:-cut]), compression))


@pytest.mark.parametrize("garbage", [b"x", bytes(8), b"garbage that is longer", bytes(1000)])
@pytest.mark.parametrize(
    ("compression", "stored"), [(Compression.GZIP, gzip.compress(DATA)), (Compression.ZSTD, zstd(DATA))]
)
def test_what_follows_the_compressed_data_is_refused(compression, stored, garbage):
    with pytest.raises(InvalidArgument):
        read_all(uncompressed(io.BytesIO(stored + garbage), compression))


@pytest.mark.parametrize(
    ("compression", "stored"),
    [(Compression.GZIP, gzip.compress(DATA)), (Compression.ZSTD, zstd(DATA, write_checksum=True))],
)
def test_a_flipped_bit_is_noticed(compression, stored):
    for at in (0, 4, len(stored) // 2, len(stored) - 3):
        damaged = bytearray(stored)
        damaged[at] ^= 0x04
        try:
            found = read_all(uncompressed(io.BytesIO(damaged), compression))
        except InvalidArgument:
            continue
        assert found == DATA  # a bit of gzip's header that does not matter, such as the time
        assert at == 4


def test_nothing_is_not_a_gzip_file():
    with pytest.raises(InvalidArgument, match="truncated"):
        read_all(uncompressed(io.BytesIO(b""), Compression.GZIP))


def test_a_window_that_needs_too_much_memory_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    stored = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = stored.compress(b"x" * 1000) + stored.flush()
    with pytest.raises(InvalidArgument, match="too much memory"):
        read_all(uncompressed(io.BytesIO(data), Compression.ZSTD))


def zstd_bomb(blocks: int) -> bytes:
    """Return a frame in which each 4 bytes become 128 KiB."""
    block = ((128 * 1024) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * blocks + last  # a window of 2 MiB


@pytest.mark.parametrize(
    ("compression", "stored"),
    [(Compression.GZIP, gzip.compress(bytes(60 << 20))), (Compression.ZSTD, zstd_bomb(1000))],
)
def test_a_bomb_is_read_in_bounded_memory(compression, stored):
    stream = uncompressed(io.BytesIO(stored), compression)
    tracemalloc.start()
    try:
        total = 0
        while part := stream.read(1 << 18):
            total += len(part)
        assert total >= 60 << 20
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@given(data=st.binary(max_size=300), compression=st.sampled_from([Compression.GZIP, Compression.ZSTD]))
def test_noise_is_refused(data, compression):
    with contextlib.suppress(InvalidArgument):
        read_all(uncompressed(io.BytesIO(data), compression))


@given(
    changes=st.lists(st.tuples(st.integers(4, 200), st.integers(0, 255)), max_size=4),
    stored=st.sampled_from([zstd(b"abc" * 500, write_checksum=True), gzip.compress(b"abc" * 500)]),
)
def test_damaged_data_is_refused(changes, stored):
    damaged = bytearray(stored)
    for at, value in changes:
        if at < len(damaged):
            damaged[at] = value
    compression = Compression.ZSTD if stored[0] == 0x28 else Compression.GZIP
    with contextlib.suppress(InvalidArgument):
        read_all(uncompressed(io.BytesIO(damaged), compression))


GZIP_START, ZSTD_START, TAR_START = b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"etc/"


@pytest.mark.parametrize(
    ("media_type", "start", "expected"),
    [
        (OCI, TAR_START, Compression.NONE),
        (OCI, b"", Compression.NONE),
        (f"{OCI}+gzip", GZIP_START, Compression.GZIP),
        (f"{OCI}+zstd", ZSTD_START, Compression.ZSTD),
        (f"{OCI}+zstd", b"\x50\x2a\x4d\x18", Compression.ZSTD),
        (f"{DOCKER}.gzip", GZIP_START, Compression.GZIP),
        (f"{DOCKER}.zstd", ZSTD_START, Compression.ZSTD),
        (DOCKER, TAR_START, Compression.NONE),
        (DOCKER, GZIP_START, Compression.GZIP),
    ],
)
def test_the_media_type_says_what_is_inside(media_type, start, expected):
    assert of(media_type, start) is expected


@pytest.mark.parametrize(
    ("media_type", "start", "message"),
    [
        (f"{OCI}+gzip", ZSTD_START, "'zstd'"),
        (f"{OCI}+gzip", TAR_START, "'none'"),
        (OCI, GZIP_START, "'gzip'"),
        (f"{OCI}+zstd", GZIP_START, "'gzip'"),
        (f"{OCI}+gzip+encrypted", GZIP_START, r"tar\+gzip\+encrypted' is an encrypted layer"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", GZIP_START, "foreign layer"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", ZSTD_START, "foreign layer"),
        ("application/vnd.oci.image.config.v1+json", b"{", "config.v1.*not a layer"),
        ("", TAR_START, "not a layer"),
    ],
)
def test_other_media_types_and_other_contents_are_refused(media_type, start, message):
    with pytest.raises(InvalidArgument, match=message):
        of(media_type, start)


def test_a_blob_is_opened_by_its_media_type(tmp_path):
    blob = tmp_path / "blob"
    blob.write_bytes(gzip.compress(DATA))
    with opened(blob, f"{OCI}+gzip") as layer:
        assert read_all(layer) == DATA
    with pytest.raises(NotFound, match="missing"), opened(tmp_path / "missing", OCI):
        pass
