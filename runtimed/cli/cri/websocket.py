"""A client of WebSocket (RFC 6455), for exec and attach: aiohttp takes as long to load as everything else of rctl."""

import base64
import hashlib
import os
import struct
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from runtimed.cli.cri.upgrade import upgraded
from runtimed.errors import Internal, Unavailable

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_FIN = 0x80
_MAX = 16 << 20  # bytes of a message


class WebSocket:
    """A connection; messages are bytes. One sender and one receiver at a time."""

    def __init__(self, reader: StreamReader, writer: StreamWriter, protocol: str) -> None:
        self.protocol = protocol  # the subprotocol that the server has chosen
        self._reader = reader
        self._writer = writer

    async def send(self, message: bytes) -> None:
        """Send a binary message; waits while the server takes nothing. Raises Unavailable."""
        self._put(_BINARY, message)
        try:
            await self._writer.drain()
        except OSError as exc:
            raise Unavailable(f"streaming server: {exc}") from None

    def stay(self) -> None:
        """Tell the server that this end is there, which has been waiting for a slow reader and answered no ping."""
        self._put(_PONG, b"")

    async def receive(self) -> bytes | None:
        """Return the next message, None when the server has closed. Raises Unavailable, Internal."""
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                first, data = await self._frame()
            except (IncompleteReadError, OSError):
                raise Unavailable("streaming server: the connection was lost") from None
            kind = first & 0x0F
            if kind == _CLOSE:
                self._put(_CLOSE, data[:2])
                return None
            if kind == _PING:
                self._put(_PONG, data)
            elif kind in {_TEXT, _BINARY, _CONTINUATION}:
                parts.append(data)
                size += len(data)
                if size > _MAX:
                    raise Internal("streaming server: it sends a message that is too large")
                if first & _FIN:
                    return b"".join(parts)

    def _put(self, kind: int, data: bytes) -> None:
        mask = os.urandom(4)
        length = len(data)
        head = struct.pack(">B", _FIN | kind)
        if length < 126:
            head += struct.pack(">B", 0x80 | length)
        elif length < 1 << 16:
            head += struct.pack(">BH", 0x80 | 126, length)
        else:
            head += struct.pack(">BQ", 0x80 | 127, length)
        self._writer.write(head + mask + _masked(data, mask))

    async def _frame(self) -> tuple[int, bytes]:
        first, second = await self._reader.readexactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", await self._reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self._reader.readexactly(8))
        if length > _MAX or second & 0x80:
            raise Internal("streaming server: it sends what is no WebSocket frame of a server")
        return first, await self._reader.readexactly(length)


@asynccontextmanager
async def connected(url: str, protocols: Sequence[str], *, authority: str | None = None) -> AsyncIterator[WebSocket]:
    """Hold a connection that speaks one of *protocols*. *authority* and errors as of :func:`upgraded`."""
    key = base64.b64encode(os.urandom(16))
    headers = {
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key.decode(),
        "Sec-WebSocket-Protocol": ", ".join(protocols),
    }
    async with upgraded(url, "GET", headers, authority=authority) as (reader, writer, answered):
        digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
        protocol = answered.get("sec-websocket-protocol", "")
        if answered.get("sec-websocket-accept") != base64.b64encode(digest).decode() or protocol not in protocols:
            raise Internal(f"streaming server: it speaks none of {', '.join(protocols)}")
        yield WebSocket(reader, writer, protocol)


def _masked(data: bytes, mask: bytes) -> bytes:
    length = len(data)
    repeated = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(length)
