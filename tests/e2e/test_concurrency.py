"""Pulls, deletions, prunes and leases of the same digests at once: what is asked for is there, what is held stays."""

import asyncio
import time

import pytest

import runtimed.client
from runtimed.client.records import Resource
from runtimed.errors import NotFound
from tests.daemon import PrivateDaemon

pytestmark = [pytest.mark.root, pytest.mark.e2e]

ROUNDS = 12


async def test_pull_against_prune_against_expiring_leases(daemon: PrivateDaemon, busybox: str):
    """No pull misses content while others delete the image and collect, and what a live lease holds stays."""
    async with runtimed.client.connect(str(daemon.address), namespace=daemon.namespace) as client:
        await client.images.pull(busybox)
        held = [blob.digest async for blob in client.content.list()]
        await client.leases.create("keeps")
        for digest in held:
            await client.leases.add("keeps", Resource(type="content", id=digest))

        async def pull():
            for _ in range(ROUNDS):
                try:
                    image = await client.images.pull(busybox)
                except NotFound as exc:
                    if not str(exc).startswith("image "):  # only the name may have been deleted again
                        raise
                else:
                    assert await client.content.get(image.digest)

        async def prune():
            for _ in range(ROUNDS):
                try:
                    await client.images.delete(busybox, sync=True)
                except NotFound:
                    await client.leases.create("prunes")
                    await client.leases.delete("prunes", sync=True)

        async def expire():
            for number in range(ROUNDS):
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + number % 2))
                id = (await client.leases.create(labels={"containerd.io/gc.expire": at})).id
                for digest in held:
                    try:
                        await client.leases.add(id, Resource(type="content", id=digest))
                    except NotFound:
                        break  # it has expired

        async with asyncio.TaskGroup() as tasks:
            for work in (pull, pull, prune, expire):
                tasks.create_task(work())
        assert {blob.digest async for blob in client.content.list()} >= set(held)
        await client.leases.delete("keeps")


async def test_pull_against_deletion_of_its_blobs_and_prune(daemon: PrivateDaemon, busybox: str):
    """Blobs that a client deletes under a pull cost that pull at most a named blob; the next one mends all."""
    async with runtimed.client.connect(str(daemon.address), namespace=daemon.namespace) as client:
        image = await client.images.pull(busybox)
        digests = [blob.digest async for blob in client.content.list()]
        sizes = {digest: len(await client.content.get(digest)) for digest in digests}
        deleted = 0
        pulling = 2

        async def pull():
            nonlocal pulling
            for _ in range(ROUNDS):
                try:
                    assert (await client.images.pull(busybox)).digest == image.digest
                except NotFound as exc:
                    # What was deleted under it is named: the image's name, or one of its blobs.
                    if not any(name in str(exc) for name in (*digests, busybox)):
                        raise
            pulling -= 1

        async def delete():
            nonlocal deleted
            while pulling:
                for digest in digests:
                    try:
                        await client.content.delete(digest)
                        deleted += 1
                    except NotFound as exc:
                        if digest not in str(exc):
                            raise

        async def prune():
            while pulling:
                lease = await client.leases.create()
                await client.leases.delete(lease.id, sync=True)

        async with asyncio.TaskGroup() as tasks:
            for work in (pull, pull, delete, prune):
                tasks.create_task(work())
        assert deleted
        # All is quiet again: one pull, and every blob is there with every byte; a prune takes none of them.
        assert (await client.images.pull(busybox)).digest == image.digest
        lease = await client.leases.create()
        await client.leases.delete(lease.id, sync=True)
        assert {digest: len(await client.content.get(digest)) for digest in digests} == sizes
        assert [ingest async for ingest in client.content.ingests()] == []
    assert daemon.run("--rm", busybox, "after", "cat", "/etc/motd").stdout == "welcome\n"


async def test_many_pulls_of_one_image_of_which_one_is_given_up(daemon: PrivateDaemon, busybox: str):
    async with runtimed.client.connect(str(daemon.address), namespace=daemon.namespace) as client:

        async def pull() -> str:
            return (await client.images.pull(busybox)).digest

        pulls = [asyncio.create_task(pull()) for _ in range(5)]
        await asyncio.sleep(0)  # all have begun
        pulls[2].cancel()
        done = await asyncio.gather(*pulls, return_exceptions=True)
        assert isinstance(done.pop(2), asyncio.CancelledError)
        assert len(set(done)) == 1
        assert await client.content.get(str(done[0]))
