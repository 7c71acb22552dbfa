"""Keeps the ``index.json`` of the content store in step with the images."""

import asyncio
from collections.abc import AsyncIterator

from runtimed.metadata.content import Content
from runtimed.threads import blocking

_DELAY_S = 0.5


async def keep_index(content: Content, changes: AsyncIterator[object], delay_s: float = _DELAY_S) -> None:
    """Write the index anew after each of *changes*, the events ``/images/create``, ``update`` and ``delete``.

    Whoever changes images publishes such an event, so nobody need know of the index. What comes within *delay_s* is
    one write: making ten thousand images does not write ten thousand indexes. Ends when *changes* ends; run it in a
    task and cancel that to stop. What is not written then is written at the next start (:meth:`Content.reconcile`).
    """
    changed = asyncio.Event()

    async def write() -> None:
        while True:
            await changed.wait()
            await asyncio.sleep(delay_s)
            changed.clear()
            await blocking(content.write_index)

    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(write())
        async for _ in changes:
            changed.set()
        writing.cancel()
    if changed.is_set():
        await blocking(content.write_index)
