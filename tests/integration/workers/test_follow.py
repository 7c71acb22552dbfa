"""Layers in files that still grow, received behind whoever writes them."""

import asyncio
import gzip
from pathlib import Path

import pytest

from runtimed.mounts import Mount
from runtimed.oci import digest
from runtimed.workers.pool import Pool
from tests.images import tars
from tests.processes import descendants

pytestmark = pytest.mark.root

LAYER = "application/vnd.oci.image.layer.v1.tar"
TAR = tars.tar(tars.file(b"f", b"data"), tars.file(b"g", bytes(range(256)) * 4096))


@pytest.fixture
async def pool(tmp_path):
    before = set(descendants())
    pool = Pool(1, mountpoint=tmp_path / "mountpoint")
    await pool.start()
    yield pool
    await pool.close()
    assert not set(descendants()) - before


class Growing:
    """A file, and what follows it."""

    def __init__(self, pool: Pool, directory: Path) -> None:
        self.path = directory / "data"
        self.path.touch()
        self.sizes: asyncio.Queue[int | None] = asyncio.Queue()
        self.task = asyncio.create_task(pool.follow(self.path, directory, self.sizes))

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
            self.sizes.put_nowait(file.tell())

    def end(self) -> None:
        self.sizes.put_nowait(None)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
async def test_a_layer_is_received_while_it_is_written(pool, tmp_path, pack):
    growing = Growing(pool, tmp_path)
    blob = pack(TAR)
    for at in range(0, len(blob), 100_000):
        growing.write(blob[at : at + 100_000])
        await asyncio.sleep(0)
    growing.end()
    received = await growing.task
    assert received
    growing.path.unlink()
    upper, target = tmp_path / "upper", tmp_path / "layer.erofs"
    upper.mkdir()
    async with received:
        diff_id = "" if pack is bytes else digest.of(TAR)
        assert (received.applied.diff_id, received.applied.size) == (diff_id, len(TAR))
        assert await received.finish([Mount("bind", str(upper), options=("rbind", "rw"))], target)
    checked = await pool.check(target)
    assert (checked.diff_id, checked.size) == (digest.of(TAR), len(TAR))
    assert pool.busy == 0


@pytest.mark.parametrize("data", [b"{" * 2000, TAR[:-2000], gzip.compress(TAR)[:-9]], ids=len)
async def test_what_is_no_whole_layer_is_not_received(pool, tmp_path, data):
    growing = Growing(pool, tmp_path)
    growing.write(data)
    growing.end()
    assert await growing.task is None
    assert pool.busy == 0


async def test_what_comes_after_what_is_no_layer_is_no_job_for_the_next(pool, tmp_path):
    growing = Growing(pool, tmp_path)
    for _ in range(20):
        growing.write(b"{" * 2000)
    growing.end()
    assert await growing.task is None
    again = Growing(pool, tmp_path / "..")
    again.path.unlink()
    again.end()
    assert await again.task is None
    assert pool.busy == 0


async def test_where_no_process_is_free_nothing_is_followed(pool, tmp_path):
    taken = [Growing(pool, tmp_path) for _ in range(3)]
    await asyncio.sleep(0)
    assert await pool.follow(tmp_path / "data", tmp_path, asyncio.Queue()) is None
    for growing in taken:
        growing.task.cancel()
    await asyncio.wait([growing.task for growing in taken])
    assert pool.busy == 0


async def test_a_process_that_dies_costs_what_it_follows(pool, tmp_path):
    growing = Growing(pool, tmp_path)
    growing.write(TAR[:1000])
    async with asyncio.timeout(20):
        while not pool.busy:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)
    await asyncio.gather(*(worker.kill() for worker in list(pool._busy)))
    async with asyncio.timeout(20):
        assert await growing.task is None
    assert pool.busy == 0


async def test_what_was_received_is_given_to_who_expects_it(pool, tmp_path):
    growing = Growing(pool, tmp_path)
    growing.write(TAR)
    growing.end()
    received = await growing.task
    assert received
    assert not pool.give(digest.of(TAR), TAR[:16], received)
    other = pool.expect(digest.of(TAR), f"{LAYER}+gzip", tmp_path, lambda: None)
    assert other
    assert not pool.give(digest.of(TAR), TAR[:16], received)
    await other.close()
    expected = pool.expect(digest.of(TAR), LAYER, tmp_path, lambda: None)
    assert expected
    assert pool.give(digest.of(TAR), TAR[:16], received)
    assert expected.take() is received
    assert received.applied.diff_id == digest.of(TAR)
    await received.release()
    await expected.close()
    assert pool.busy == 0
