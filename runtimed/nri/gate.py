"""Who makes pods and containers, and who tells a plugin which there are: so that none is missed between the two."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Any number may make something at once; a synchronization is alone. One that waits goes before who comes later."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._making = 0
        self._waiting = 0  # synchronizations, the one under way included

    @asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        """From before plugins are asked about something new until it is listed."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._waiting)
            self._making += 1
        try:
            yield
        finally:
            async with self._changed:
                self._making -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def synchronizing(self) -> AsyncIterator[None]:
        """While a plugin is told what there is, until it gets events."""
        self._waiting += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._making)
                yield
        finally:
            self._waiting -= 1
            async with self._changed:
                self._changed.notify_all()
