"""Connections on which nothing has moved for too long."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol


class Moving(Protocol):
    """Something with two ends."""

    last_activity: float  # when a byte has come or gone, by the clock of the event loop


@asynccontextmanager
async def unless_idle(connection: Moving, limit_s: float, end: Callable[[], None]) -> AsyncIterator[None]:
    """Call *end* once nothing has moved for *limit_s* while the block runs."""
    watching = asyncio.create_task(_watch(connection, limit_s, end))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def _watch(connection: Moving, limit_s: float, end: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    while (left := connection.last_activity + limit_s - loop.time()) > 0:  # noqa: ASYNC110 - no event tells that nothing comes
        await asyncio.sleep(left)
    end()
