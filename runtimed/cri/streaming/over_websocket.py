"""Exec and attach over WebSocket: the first byte of a message is its channel (k8s.io/apimachinery, remotecommand)."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator

from aiohttp import WSMsgType, web

from runtimed.cri.streaming import running
from runtimed.cri.streaming.hangup import HangUp
from runtimed.cri.streaming.idle import unless_idle
from runtimed.cri.streaming.session import Input, Runtime, Session, Write
from runtimed.cri.streaming.tickets import Ticket

PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)
TUNNEL = "SPDY/3.1+portforward.k8s.io"
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_PIECE = 32 << 10  # bytes of a message


async def remote(
    socket: web.WebSocketResponse,
    transport: asyncio.BaseTransport,
    runtime: Runtime,
    ticket: Ticket,
    idle_limit_s: float,
) -> None:
    """Serve an exec or attach on *socket*."""
    protocol = socket.ws_protocol or "channel.k8s.io"
    channels = Channels(socket, protocol, transport)
    stdin = Input(channels.look) if ticket.stdin else None
    session = Session(
        stdin,
        channels.writer(_STDOUT) if ticket.stdout else None,
        channels.writer(_STDERR) if ticket.stderr and not ticket.tty else None,
    )
    gone = asyncio.Event()
    reading = asyncio.create_task(_read(channels, stdin, session, gone, can_close=protocol.startswith("v5.")))
    try:
        if ticket.stdout:
            await channels.send(_STDOUT, b"")  # tells the client that there is a connection
        async with unless_idle(channels, idle_limit_s, gone.set):
            status, words = await running.run(runtime, ticket, session, gone)
        if not gone.is_set():
            await channels.send(_ERROR, status if protocol.startswith(("v4.", "v5.")) else words.encode())
    finally:
        reading.cancel()
        await asyncio.wait([reading])
    await socket.close()


async def _read(
    channels: "Channels", stdin: Input | None, session: Session, gone: asyncio.Event, *, can_close: bool
) -> None:
    """Pass on what the client sends, until it is gone."""
    try:
        async for channel, data in channels:
            if channel == _STDIN and stdin is not None:
                if not await channels.fill(stdin, data):
                    return
            elif channel == _RESIZE:
                running.resize(data, session)
            elif channel == _CLOSE and can_close and data[:1] == b"\0" and stdin is not None:
                stdin.end()
    finally:
        if stdin is not None:
            stdin.end()
        gone.set()


class Channels:
    """A WebSocket whose messages begin with a channel's number: a byte, or in base64 protocols a character from "0"."""

    def __init__(self, socket: web.WebSocketResponse, protocol: str, transport: asyncio.BaseTransport) -> None:
        self._socket = socket
        self._transport = transport
        self._is_base64 = "base64" in protocol
        self._drained = asyncio.Event()
        self.last_activity = asyncio.get_running_loop().time()

    def look(self) -> None:
        """Called by an input that has changed."""
        self._drained.set()

    async def fill(self, input: Input, data: bytes) -> bool:
        """Give *data* to an input, and wait until it has room for more; return whether the client is still there."""
        input.feed(data)
        if not input.is_full:
            return True
        with HangUp(self._transport, self._drained.set) as hangup:
            while input.is_full and not hangup.has_come:
                self._drained.clear()
                await self._drained.wait()
        return not hangup.has_come

    def writer(self, channel: int) -> Write:
        async def write(data: bytes) -> None:
            for start in range(0, len(data), _PIECE):
                await self.send(channel, data[start : start + _PIECE])

        return write

    async def send(self, channel: int, data: bytes) -> None:
        """Send a message; waits while the client takes nothing."""
        await asyncio.sleep(0)  # who writes without end lets others in, also when nobody takes it any more
        if self._socket.closed:
            return
        try:
            if self._is_base64:
                await self._socket.send_str(chr(ord("0") + channel) + base64.b64encode(data).decode())
            else:
                await self._socket.send_bytes(bytes((channel,)) + data)
        except ConnectionError:
            pass  # reading finds out, too
        self.last_activity = asyncio.get_running_loop().time()

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield channel and content of each message, until the client is gone, or sends what is none."""
        while (message := await self._socket.receive()).type in {WSMsgType.BINARY, WSMsgType.TEXT}:
            self.last_activity = asyncio.get_running_loop().time()
            raw = message.data.encode() if isinstance(message.data, str) else message.data
            if not raw:
                continue
            if not self._is_base64:
                yield raw[0], raw[1:]
                continue
            try:
                yield raw[0] - ord("0"), base64.b64decode(raw[1:], validate=True)
            except binascii.Error:
                return
