"""Bytes over a stream for a thread, when the transfer is given up. All else: integration/images."""

import asyncio
import threading

import pytest

from runtimed.errors import Aborted
from runtimed.services.bytestreams import ByteReader
from runtimed.services.streaming import Stream


async def test_a_thread_that_is_interrupted_before_it_waits_ends(monkeypatch):
    """What runs for it in the event loop has begun to wait, and the thread has not gone on yet."""
    begun, interrupted = asyncio.Event(), threading.Event()
    really = asyncio.run_coroutine_threadsafe

    class Silent(Stream):
        async def receive(self):
            begun.set()
            return await super().receive()

    def late(coroutine, loop):
        future = really(coroutine, loop)
        interrupted.wait(20)
        return future

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", late)
    reader = ByteReader(Silent())
    reading = asyncio.ensure_future(asyncio.to_thread(reader.read, 1))
    await begun.wait()
    reader.interrupt()
    interrupted.set()
    async with asyncio.timeout(20):
        with pytest.raises(Aborted):
            await reading
