"""Coroutines that go on beside the calls that began them, until they are done or the daemon stops."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Owns them: none is lost to the garbage collector, and none outlives :meth:`end`."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def end(self) -> None:
        """Cancel what still runs, and see it end."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
