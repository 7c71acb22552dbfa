"""Bytes over a :class:`Stream`, for a thread to read or write as it does a file.

They travel as ``Data``, and only as many as the receiver has allowed by ``WindowUpdate`` (containerd.types.transfer).
"""

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any as Anything
from typing import TypeVar

from google.protobuf.any_pb2 import Any

from runtimed.api import transfer_types_pb2 as types
from runtimed.errors import Aborted, InvalidArgument, Unavailable
from runtimed.services.streaming import Stream, Streams, unpack

T = TypeVar("T")

_WINDOW = 2 << 20  # bytes that a client may have under way
_UPDATE = 1 << 19  # bytes taken after which it is told that it may send more
_MOST_AT_ONCE = 1 << 18  # bytes in a message of ours; a client's own are of 32 KiB


class _Bridge:
    """Runs coroutines of the event loop for one thread, until it is interrupted."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._running: asyncio.Task[Anything] | None = None
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Make what the thread waits for, and all that it will, fail with Aborted. Call it in the event loop."""
        self._is_interrupted = True
        if self._running is not None:
            self._running.cancel()

    def _wait(self, func: Callable[[], Coroutine[Anything, Anything, T]]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(self._unless_interrupted(func), self._loop).result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise Aborted("the transfer has been cancelled") from None

    async def _unless_interrupted(self, func: Callable[[], Coroutine[Anything, Anything, T]]) -> T:
        # In the event loop, as interrupt() is: the thread learns too late what runs for it.
        if self._is_interrupted:
            raise Aborted("the transfer has been cancelled")
        self._running = asyncio.current_task()
        try:
            return await func()
        finally:
            self._running = None


class ByteReader(_Bridge):
    """What a client sends. Made in the event loop, read by one thread."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._window = 0  # bytes that the client may still send
        self._taken = 0  # bytes that have come since it was told
        self._pieces: deque[bytes] = deque()

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, b"" at the end.

        Raises:
            InvalidArgument: the client sends something else, or more than it may.
            Aborted: interrupted.
        """
        if not self._pieces:
            self._pieces += self._wait(self.receive)
            if not self._pieces:
                return b""
        data = self._pieces.popleft()
        if len(data) > size:
            self._pieces.appendleft(data[size:])
            data = data[:size]
        return data

    async def receive(self) -> list[bytes]:
        """Return what has come, in pieces, at least a byte if there is any more."""
        if not self._window and not self._taken:
            await self._allow(_WINDOW)
        while (first := await self._stream.receive()) is not None:
            pieces = [data for packed in (first, *self._stream.received()) if (data := _data(packed))]
            if count := sum(map(len, pieces)):
                self._window -= count
                if self._window < 0:
                    raise InvalidArgument(f"stream: {-self._window} bytes more than its window allows")
                self._taken += count
                if self._taken >= _UPDATE:
                    await self._allow(self._taken)
                    self._taken = 0
                return pieces
        return []

    async def _allow(self, count: int) -> None:
        self._window += count
        try:
            await self._stream.send(types.WindowUpdate(update=count))
        except Unavailable:  # the client has sent all and gone; what it has sent counts
            return


class ByteWriter(_Bridge):
    """What a client is sent. Made in the event loop, written to by one thread."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._window = 0  # bytes that the client will take

    def write(self, data: bytes | memoryview, /) -> None:
        """Send *data*; blocks while the client does not take it.

        Raises:
            Unavailable: the client has gone.
            InvalidArgument: it sends something other than window updates.
            Aborted: interrupted.
        """
        if data:
            self._wait(partial(self.send, memoryview(data)))

    async def send(self, data: memoryview) -> None:
        """As :meth:`write`, in the event loop."""
        while data:
            while self._window <= 0:
                update = types.WindowUpdate()
                packed = await self._stream.receive()
                if packed is None:
                    raise Unavailable("the stream has ended: its reader has gone")
                unpack(packed, update)
                self._window += update.update
            piece = data[: min(self._window, _MOST_AT_ONCE)]
            await self._stream.send(types.Data(data=bytes(piece)))
            self._window -= len(piece)
            data = data[len(piece) :]


@asynccontextmanager
async def opened(streams: Streams, namespace: str, id: str) -> AsyncIterator[Stream]:
    """Hold the stream *id*, which ends with the block. Raises NotFound."""
    stream = await streams.get(namespace, id)
    try:
        yield stream
    finally:
        stream.close()


async def echo(source: Stream, destination: Stream) -> None:
    """Send what comes from *source* to *destination*, until it ends."""
    reader, writer = ByteReader(source), ByteWriter(destination)
    while pieces := await reader.receive():
        for data in pieces:
            await writer.send(memoryview(data))


def _data(packed: Any) -> bytes:
    message = types.Data()
    unpack(packed, message)
    return message.data
