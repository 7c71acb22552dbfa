"""Files of an archive that become layer files while they arrive: a worker process reads each behind whoever writes it.

What the files are is known when all have come. Until then anything large may be a layer; what is none costs a process.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from runtimed.workers.pool import Pool, Received

_MOST = 8  # files of an archive that wait in worker processes
_LARGE = 256 * 1024  # bytes; smaller layers take less time than telling of them
_STEP = 1 << 20  # bytes after which the reader is told


class Followed:
    """A file that grows. The thread that writes it tells how far it is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool, path: Path, directory: Path) -> None:
        self._loop = loop
        self._told = 0
        self._sizes: asyncio.Queue[int | None] = asyncio.Queue()
        self.received: asyncio.Task[Received | None] | None = None
        loop.call_soon_threadsafe(self._start, pool, path, directory)

    def grown(self, size: int) -> None:
        """Say that the file has *size* bytes now."""
        if size - self._told >= _STEP:
            self._tell(size)

    def whole(self, size: int) -> None:
        """Say that the file has *size* bytes, and no more will come."""
        self._tell(size)
        self._loop.call_soon_threadsafe(self._sizes.put_nowait, None)

    async def until_read(self) -> "Received | None":
        """Wait until the file is not needed any more, which has its name until then; return what was received."""
        return await asyncio.shield(self.received) if self.received else None

    def _tell(self, size: int) -> None:
        self._told = size
        self._loop.call_soon_threadsafe(self._sizes.put_nowait, size)

    def _start(self, pool: Pool, path: Path, directory: Path) -> None:
        self.received = asyncio.create_task(pool.follow(path, directory, self._sizes))


class Following:
    """The files of one archive. A context manager: lets go of all that nobody has taken."""

    def __init__(self, pool: Pool, directory: Path | None) -> None:
        """Make layer files on the file system of *directory*; None: follow nothing."""
        self._loop = asyncio.get_running_loop()
        self._pool = pool
        self._directory = directory
        self._followed: list[Followed] = []

    def begin(self, path: Path, size: int) -> Followed | None:
        """Follow the file *path*, which will have *size* bytes, if that is worth it. For any one thread."""
        if self._directory is None or size < _LARGE or len(self._followed) >= _MOST:
            return None
        followed = Followed(self._loop, self._pool, path, self._directory)
        self._followed.append(followed)
        return followed

    async def give(self, followed: Followed, digest: str, start: bytes) -> None:
        """Let who expects the layer *digest* have what was received of it; its file begins with *start*."""
        received = await followed.until_read()
        if followed in self._followed:
            self._followed.remove(followed)
            if received is not None and not self._pool.give(digest, start, received):
                await received.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as held:
            for followed in self._followed:
                held.push_async_callback(_let_go, followed)


async def _let_go(followed: Followed) -> None:
    task = followed.received
    if task is None:
        return
    if not task.done():
        task.cancel()  # which ends the process
        await asyncio.wait([task])
    if not task.cancelled() and (received := task.result()) is not None:
        await received.release()
