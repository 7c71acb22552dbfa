"""Operations that a retry joins: one at a time by its key, and not ended when the caller who began it leaves.

A kubelet that gives up waiting asks again; it is to get what the first call is about to make, not an error because
there is a first call. An operation that nobody waits for any more goes on to its end, well or not: each has limits of
its own for what may hang.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar, cast

from runtimed.errors import FailedPrecondition, RuntimedError

log = logging.getLogger(__name__)

T = TypeVar("T")

_END_WITHIN_S = 3.0  # at the stop of the daemon, before what still runs is cancelled and undone


class Operations:
    """What is being done now, by key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._running: dict[Hashable, tuple[object, asyncio.Task[Any]]] = {}

    async def run(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]], request: object = None) -> T:
        """Return what ``await start()`` returns, or the operation *key* that is running.

        Raises:
            FailedPrecondition: the one that is running was begun with another *request*.
        """
        if (running := self._running.get(key)) is not None:
            begun, task = running
            if begun != request:
                raise FailedPrecondition(f"{_name(key)} is in progress for another request")
        else:
            task = asyncio.create_task(start())
            self._running[key] = request, task
            task.add_done_callback(lambda done: self._ended(key, done))
        return cast(T, await asyncio.shield(task))

    async def close(self) -> None:
        """Let what runs end, or cancel it, and wait for its undoing."""
        tasks = [task for _, task in self._running.values()]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=_END_WITHIN_S)
            for task in left:
                task.cancel()
            await asyncio.wait(tasks)

    def _ended(self, key: Hashable, task: "asyncio.Task[Any]") -> None:
        del self._running[key]
        if not task.cancelled() and (failure := task.exception()) is not None:
            # Whoever waits hears it; if nobody does any more, the log has it.
            level = logging.DEBUG if isinstance(failure, RuntimedError) else logging.ERROR
            log.log(level, "operation failed", extra={"operation": _name(key), "error": str(failure)})


def _name(key: Hashable) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
