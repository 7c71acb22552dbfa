"""One job a key, for however many want it done."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field

Listener = Callable[[int], None]


@dataclass(eq=False)
class _Job:
    owner: str
    listeners: list[Listener] = field(default_factory=list)
    is_given_up: bool = False
    task: "asyncio.Task[None]" = field(init=False)

    def tell(self, progress: int) -> None:
        for listener in self.listeners:
            listener(progress)


class Joint:
    """Jobs that are running, by key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._jobs: dict[Hashable, _Job] = {}

    def owner(self, key: Hashable) -> str | None:
        """Return whose the job *key* is, if one is running."""
        job = self._jobs.get(key)
        return None if job is None or job.is_given_up else job.owner

    async def run(
        self,
        key: Hashable,
        start: Callable[[Listener], Awaitable[None]],
        listener: Listener = lambda _: None,
        owner: str = "",
    ) -> bool:
        """See the job *key* through: join it if it is running, else begin it as ``start(tell)``; say if it was begun.

        What the job tells goes to the *listener* of each who waits, and so does how it ends. Whoever is cancelled
        leaves the others waiting; when the last one is, the job is cancelled, and this returns after it has ended.
        """
        job = self._jobs.get(key)
        while job is not None and job.is_given_up:
            await asyncio.wait([job.task])
            job = self._jobs.get(key)
        begun = job is None
        if job is None:
            job = self._jobs[key] = _Job(owner)
            job.task = asyncio.create_task(_do(start, job.tell))
            # The first callback: nobody who waits for the task finds its job still here.
            job.task.add_done_callback(lambda _: self._jobs.pop(key))
        job.listeners.append(listener)
        try:
            await asyncio.shield(job.task)
        finally:
            job.listeners.remove(listener)
            if not job.listeners and not job.task.done():
                job.is_given_up = True
                await _cancelled(job.task)
        return begun


async def _do(start: Callable[[Listener], Awaitable[None]], tell: Listener) -> None:
    await start(tell)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    """Cancel *task* and wait until it has ended, also if the caller is cancelled once more meanwhile."""
    task.cancel()
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen; who could have wanted it has gone
