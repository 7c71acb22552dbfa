"""Both directions of NRI on one connection, the trunk: each frame of ttrpc in pieces that say whose it is.

A piece is a header of eight bytes, big endian, and a payload::

    u32 channel   1 what the daemon asks of the plugin; 2 what the plugin asks of the daemon
    u32 length of the payload, at most that of the longest frame of ttrpc
"""

import asyncio
import logging
import struct
from collections import deque
from contextlib import suppress

from runtimed.rpc import frames

log = logging.getLogger(__name__)

PLUGIN, RUNTIME = 1, 2  # channels, by the service that is spoken on each

HEADER = struct.Struct(">II")
MAX_PIECE = frames.HEADER.size + frames.MAX_MESSAGE
_FIRST_PIECE = 4096  # bytes
_MOST_UNREAD = MAX_PIECE + (1 << 20)  # bytes of one channel, before the trunk is no longer read


class Mux:
    """A trunk and its channels. It ends as a whole: a plugin that one side cannot speak to is none."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._channels: dict[int, Channel] = {}
        self._reading: asyncio.Task[None] | None = None

    def open(self, id: int) -> "Channel":
        """Return a channel; what comes for one that is not open is skipped."""
        return self._channels.setdefault(id, Channel(self, id))

    def start(self) -> None:
        """Begin to read, now that all channels are open."""
        self._reading = asyncio.create_task(self._read())

    def send(self, id: int, frame: bytes) -> None:
        """Write a whole frame of ttrpc to a channel.

        In two pieces if it is long: plugins in Go read the first part of a frame into a buffer of 4096 bytes and the
        rest into one of its length, and give up if a piece does not fit. They queue few pieces, so there are not more.
        """
        for piece in filter(None, (frame[:_FIRST_PIECE], frame[_FIRST_PIECE:])):
            self._writer.write(HEADER.pack(id, len(piece)) + piece)

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        """Disconnect: all channels have come to their ends. What the other side has not taken is not waited for."""
        self._writer.transport.abort()  # close() would wait for a plugin that hangs, and with it the daemon's end
        for channel in self._channels.values():
            channel.end()

    async def wait_closed(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while True:
                id, length = HEADER.unpack(await self._reader.readexactly(HEADER.size))
                if length > MAX_PIECE:
                    log.warning("an NRI plugin sent a piece of %d bytes, more than %d: disconnected", length, MAX_PIECE)
                    return
                while length:
                    data = await self._reader.read(min(length, 64 << 10))
                    if not data:
                        return
                    length -= len(data)
                    if (channel := self._channels.get(id)) is not None:
                        await channel.feed(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the other side has closed or died
        finally:
            self.close()


class Channel:
    """A connection inside the trunk, as ttrpc reads and writes it."""

    def __init__(self, mux: Mux, id: int) -> None:
        self._mux = mux
        self._id = id
        self._unread: deque[bytes] = deque()
        self._length = 0  # of what is unread
        self._is_ended = False
        self._changed = asyncio.Condition()

    async def feed(self, data: bytes) -> None:
        """Add what has come; wait first while too much is unread."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._length < _MOST_UNREAD or self._is_ended)
            self._unread.append(data)
            self._length += len(data)
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing comes any more; what has come can still be read."""
        if not self._is_ended:
            self._is_ended = True
            self._waking = asyncio.ensure_future(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def read(self, n: int = -1) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._unread) or self._is_ended)
            if not self._unread:
                return b""
            data = self._unread.popleft()
            self._length -= len(data)
            self._changed.notify_all()
            return data

    def write(self, data: bytes) -> None:
        self._mux.send(self._id, data)

    async def drain(self) -> None:
        await self._mux.drain()

    def close(self) -> None:
        self._mux.close()

    async def wait_closed(self) -> None:
        await self._mux.wait_closed()
