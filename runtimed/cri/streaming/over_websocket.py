"""Exec and attach over WebSocket: the first byte of a message is its channel (k8s.io/apimachinery, remotecommand)."""

import asyncio
import base64
import binascii

from aiohttp import WSMsgType, web

from runtimed.cri.streaming import running
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


async def remote(socket: web.WebSocketResponse, runtime: Runtime, ticket: Ticket) -> None:
    """Serve an exec or attach on *socket*."""
    channels = _Channels(socket, socket.ws_protocol or "channel.k8s.io")
    stdin = Input(channels.look) if ticket.stdin else None
    session = Session(
        stdin,
        channels.writer(_STDOUT) if ticket.stdout else None,
        channels.writer(_STDERR) if ticket.stderr and not ticket.tty else None,
    )
    gone = asyncio.Event()
    reading = asyncio.create_task(channels.read(stdin, session, gone))
    try:
        if ticket.stdout:
            await channels.send(_STDOUT, b"")  # tells the client that there is a connection
        status, words = await running.run(runtime, ticket, session, gone)
        if not gone.is_set():
            await channels.send(_ERROR, status if channels.has_status else words.encode())
    finally:
        reading.cancel()
        await asyncio.wait([reading])
    await socket.close()


class _Channels:
    def __init__(self, socket: web.WebSocketResponse, protocol: str) -> None:
        self._socket = socket
        self._is_base64 = "base64" in protocol
        self._can_close = protocol.startswith("v5.")
        self.has_status = protocol.startswith(("v4.", "v5."))
        self._drained = asyncio.Event()

    def look(self) -> None:
        self._drained.set()

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
                await self._socket.send_str(f"{channel}{base64.b64encode(data).decode()}")
            else:
                await self._socket.send_bytes(bytes((channel,)) + data)
        except ConnectionError:
            pass  # reading finds out, too

    async def read(self, stdin: Input | None, session: Session, gone: asyncio.Event) -> None:
        """Pass on what the client sends, until it is gone."""
        try:
            while True:
                message = await self._socket.receive()
                if message.type not in {WSMsgType.BINARY, WSMsgType.TEXT}:
                    return
                channel, data = self._decoded(message.data)
                if channel == _STDIN and stdin is not None:
                    stdin.feed(data)
                    while stdin.is_full:
                        self._drained.clear()
                        await self._drained.wait()
                elif channel == _RESIZE:
                    running.resize(data, session)
                elif channel == _CLOSE and self._can_close and data[:1] == b"\0" and stdin is not None:
                    stdin.end()
        except ValueError:
            pass
        finally:
            if stdin is not None:
                stdin.end()
            gone.set()

    def _decoded(self, message: str | bytes) -> tuple[int, bytes]:
        """Raises ValueError."""
        raw = message.encode() if isinstance(message, str) else message
        if not raw:
            return -1, b""
        if not self._is_base64:
            return raw[0], raw[1:]
        try:
            return raw[0] - ord("0"), base64.b64decode(raw[1:], validate=True)
        except binascii.Error as exc:
            raise ValueError(str(exc)) from None
