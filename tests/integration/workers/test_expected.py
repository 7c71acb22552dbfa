"""Layers that are received while they are fetched."""

import asyncio
import gzip
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from runtimed.errors import FailedPrecondition, Unavailable
from runtimed.mounts import Mount
from runtimed.oci import digest
from runtimed.workers.pool import Fetch, Pool
from tests.images import tars
from tests.processes import descendants

pytestmark = pytest.mark.root

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
TAR = tars.tar(tars.file(b"f", b"data"), tars.file(b"g", bytes(range(256)) * 4096))
BLOB = gzip.compress(TAR, 1)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def pool(tmp_path):
    before = set(descendants())
    pool = Pool(2, mountpoint=tmp_path / "mountpoint")
    await pool.start()
    yield pool
    await pool.close()
    assert not set(descendants()) - before


class Fetching:
    """A blob under way from a server of the test's own to a file."""

    def __init__(self, pool: Pool, directory: Path) -> None:
        self.pool = pool
        self.directory = directory
        self.path = directory / "data"
        self.path.touch()
        self.upper = directory / "upper"
        self.upper.mkdir()
        self.target = directory / "layer.erofs"
        self.closed = 0

    def expect(self, blob: bytes = BLOB):
        def closed() -> None:
            self.closed += 1

        return self.pool.expect(digest.of(blob), LAYER, self.directory, closed)

    async def fetch(self, serve: Serve, blob: bytes = BLOB, *, offset: int = 0) -> str:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
            writer.close()

        async with await asyncio.start_server(served, "127.0.0.1", 0, family=socket.AF_INET) as server:
            port = server.sockets[0].getsockname()[1]
            job = Fetch(f"http://127.0.0.1:{port}/", {}, self.path, offset, len(blob), digest.of(blob))
            return await self.pool.fetch(job, lambda _: None)

    def mounts(self) -> list[Mount]:
        return [Mount("bind", str(self.upper), options=("rbind", "rw"))]


@pytest.fixture
def fetching(pool, tmp_path):
    return Fetching(pool, tmp_path)


def sending(blob: bytes = BLOB, *, status: bytes = b"200 OK", headers: bytes = b"") -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n" % (status, len(blob), headers) + blob)
        await writer.drain()

    return serve


def resumed(offset: int) -> Serve:
    content_range = b"Content-Range: bytes %d-%d/%d\r\n" % (offset, len(BLOB) - 1, len(BLOB))
    return sending(BLOB[offset:], status=b"206 Partial Content", headers=content_range)


async def test_a_layer_is_received_while_it_is_fetched(pool, fetching, tmp_path):
    expected = fetching.expect()
    assert await fetching.fetch(sending()) == digest.of(BLOB)
    assert fetching.path.read_bytes() == BLOB
    fetching.path.unlink()  # it is not needed any more
    received = expected.take()
    async with received:
        assert (received.applied.diff_id, received.applied.size) == (digest.of(TAR), len(TAR))
        assert await received.finish(fetching.mounts(), fetching.target)
    await expected.close()
    assert fetching.closed == 1
    checked = await pool.check(fetching.target)
    assert (checked.diff_id, checked.size) == (digest.of(TAR), len(TAR))
    assert pool.busy == 0


async def test_what_was_there_before_is_received_too(pool, fetching):
    fetching.path.write_bytes(BLOB[:1000])
    expected = fetching.expect()
    await fetching.fetch(resumed(1000), offset=1000)
    async with expected.take() as received:
        assert received.applied.diff_id == digest.of(TAR)
    await expected.close()


async def test_a_registry_that_begins_anew_is_followed(pool, fetching):
    """What was there before was something else; so are the bytes that were received of it."""
    fetching.path.write_bytes(bytes(1000))
    expected = fetching.expect()
    await fetching.fetch(sending(), offset=1000)
    async with expected.take() as received:
        assert received.applied.diff_id == digest.of(TAR)
    await expected.close()
    assert fetching.path.read_bytes() == BLOB


@pytest.mark.parametrize(
    "blob",
    [b"no gzip at all", BLOB[:-9], BLOB + b"more", gzip.compress(b"no tar" * 1000)],
    ids=["no gzip", "cut", "more after it", "no tar"],
)
async def test_a_bad_layer_is_fetched_and_not_received(pool, fetching, blob):
    expected = fetching.expect(blob)
    assert await fetching.fetch(sending(blob), blob) == digest.of(blob)
    assert fetching.path.read_bytes() == blob
    assert expected.take() is None
    assert pool.busy == 0
    await expected.close()


async def test_bytes_of_another_digest_are_not_received(pool, fetching):
    expected = fetching.expect()
    with pytest.raises(FailedPrecondition, match="digest"):
        await fetching.fetch(sending(BLOB[:-1] + b"\7"))
    assert expected.take() is None
    assert fetching.path.read_bytes() == b""
    await expected.close()


async def test_a_connection_that_breaks_keeps_its_bytes(pool, fetching):
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BLOB) + BLOB[:1500])
        await writer.drain()

    expected = fetching.expect()
    with pytest.raises(Unavailable, match="after 1500 of"):
        await fetching.fetch(serve)
    assert fetching.path.read_bytes() == BLOB[:1500]
    assert pool.busy == 0
    await fetching.fetch(resumed(1500), offset=1500)
    async with expected.take() as received:
        assert received.applied.diff_id == digest.of(TAR)
    await expected.close()


async def test_what_nobody_takes_is_let_go(pool, fetching):
    expected = fetching.expect()
    assert fetching.expect() is None
    await fetching.fetch(sending())
    assert pool.busy == 1
    await expected.close()
    await expected.close()
    assert (pool.busy, fetching.closed) == (0, 1)


async def test_what_is_expected_no_more_when_it_arrives_is_let_go(pool, fetching):
    arrived = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await over.wait()
        await sending()(reader, writer)

    over = asyncio.Event()
    expected = fetching.expect()
    fetch = asyncio.create_task(fetching.fetch(serve))
    await arrived.wait()
    await expected.close()
    over.set()
    assert await fetch == digest.of(BLOB)
    assert pool.busy == 0


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


async def test_memory_is_bounded_however_fast_the_bytes_come(pool, fetching):
    """A layer of zeros: a thousandth comes over the wire, and it is neither there that it waits nor in memory."""
    blob = gzip.compress(tars.tar(tars.file(b"big", bytes(96 << 20))), 1)
    expected = fetching.expect(blob)
    await fetching.fetch(sending(blob), blob)
    assert peak_kib(descendants()[-1]) < 60_000
    await expected.close()
