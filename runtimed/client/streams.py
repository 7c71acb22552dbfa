"""A process's streams for asyncio: the FIFOs of :mod:`runtimed.client.stdio`, read and written without blocking."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress

from runtimed.client.stdio import Fifos

_CHUNK = 1 << 16  # bytes


class Output:
    """What a process writes; an asynchronous iterator of pieces of bytes."""

    def __init__(self, fifos: Fifos, name: str) -> None:
        self._fifos = fifos
        self._name = name

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data

    async def read(self) -> bytes:
        """Return some bytes; b"" at the end."""
        while self._name in self._fifos:
            fd = self._fifos.fd(self._name)
            # The end is told only after somebody had it open for writing: to wait first is to wait for the process.
            await _ready(fd, is_write=False)
            with suppress(BlockingIOError):
                return os.read(fd, _CHUNK)
        return b""

    async def read_all(self) -> bytes:
        """Return all that comes until the end."""
        return b"".join([piece async for piece in self])


class Input:
    """What a process reads."""

    def __init__(self, fifos: Fifos) -> None:
        self._fd: int | None = os.dup(fifos.fd("stdin"))
        self._path = fifos.path("stdin")

    def follow(self) -> None:
        """The process has its end open: from now on a write fails when it is closed there."""
        assert self._fd is not None
        fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.close(self._fd)
        self._fd = fd

    async def write(self, data: bytes) -> None:
        """Write all of it, as fast as the process reads. Raises BrokenPipeError: it reads no more."""
        rest = memoryview(data)
        while rest:
            if self._fd is None:
                raise BrokenPipeError("the input is closed")
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                await _ready(self._fd, is_write=True)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


async def _ready(fd: int, *, is_write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if is_write else loop.add_reader)(fd, note)
    try:
        await ready
    finally:
        (loop.remove_writer if is_write else loop.remove_reader)(fd)
