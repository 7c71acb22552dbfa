"""A connection that aiohttp has read a request from, taken over for another protocol."""

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import web

from runtimed.cri.streaming.hangup import HangUp


class Raw(asyncio.Protocol):
    """The transport of *request*, after ``101 Switching Protocols``. Sending waits while the client takes nothing."""

    def __init__(self, request: web.BaseRequest) -> None:
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.lost = asyncio.Event()
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.on_lost: Callable[[], None] = lambda: None
        self._former = request.protocol
        self._hangup: HangUp | None = None  # while reading is paused
        self._writable = asyncio.Event()
        self._writable.set()
        transport.set_protocol(self)

    def switch(self, headers: Mapping[str, str]) -> None:
        lines = ["HTTP/1.1 101 Switching Protocols", *(f"{key}: {value}" for key, value in headers.items())]
        self.transport.write("".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1"))

    async def send(self, data: bytes) -> None:
        await self._writable.wait()
        if not self.lost.is_set():
            self.transport.write(data)
            await self._writable.wait()

    def pause(self) -> None:
        """Read no more for now. A client that leaves meanwhile is noticed all the same; what it sent last is lost."""
        if self._hangup is None and not self.lost.is_set():
            self.transport.pause_reading()
            self._hangup = HangUp(self.transport, self.transport.abort)

    def resume(self) -> None:
        if self._hangup is not None:
            self._unwatch()
            self.transport.resume_reading()

    def _unwatch(self) -> None:
        if self._hangup is not None:
            self._hangup.close()
            self._hangup = None

    async def close(self) -> None:
        """Close once all has been sent; at once if the client does not take it within a moment."""
        self.transport.close()
        try:
            async with asyncio.timeout(2.0):
                await self.lost.wait()
        except TimeoutError:
            self.transport.abort()
            await self.lost.wait()

    def data_received(self, data: bytes) -> None:
        self.on_data(data)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self.lost.set()
        self._writable.set()
        self.on_lost()
        self._former.connection_lost(exc)  # it keeps a list of its connections
