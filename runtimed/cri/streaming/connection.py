"""One SPDY connection of a client: its streams, with back-pressure both ways."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from runtimed.cri.streaming import spdy
from runtimed.cri.streaming.session import Input
from runtimed.errors import RuntimedError

_PIECE = 32 << 10  # bytes of a data frame that we send
_REFUSED, _PROTOCOL_ERROR = 3, 1


class Stream:
    """A stream that the client has opened."""

    def __init__(self, connection: "Connection", id: int, headers: Mapping[str, str]) -> None:
        self.id = id
        self.headers = headers
        self.input = Input(connection.look)
        self._connection = connection
        self._is_closed = False

    async def write(self, data: bytes) -> None:
        """Send *data*; waits while the client takes nothing."""
        await asyncio.sleep(0)  # who writes without end lets others in, also when nobody takes it any more
        for start in range(0, len(data), _PIECE):
            if not self._is_closed:
                await self._connection.send(spdy.data_frame(self.id, data[start : start + _PIECE]))

    async def close(self) -> None:
        """Send the end, once."""
        if not self._is_closed:
            self._is_closed = True
            await self._connection.send(spdy.data_frame(self.id, b"", fin=True))


class Connection:
    """Bytes in by :meth:`feed`, out by *send*; ``pause`` and ``resume`` hold the client up while it is too fast."""

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        pause: Callable[[], None],
        resume: Callable[[], None],
        *,
        max_streams: int,
    ) -> None:
        self._send = send
        self.opened: asyncio.Queue[Stream | None] = asyncio.Queue()  # None: the connection has ended
        self.ended = asyncio.Event()
        self.last_activity = asyncio.get_running_loop().time()
        self._pause = pause
        self._resume = resume
        self._is_paused = False
        self._max = max_streams
        self._decoder = spdy.Decoder()
        self._encoder = spdy.Encoder()
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()
        self._answering = asyncio.create_task(self._answer())

    async def send(self, data: bytes) -> None:
        """Send a frame; waits while the client takes nothing."""
        await self._send(data)
        self.last_activity = asyncio.get_running_loop().time()

    def feed(self, data: bytes) -> None:
        """Take bytes from the client. What is no SPDY ends the connection."""
        self.last_activity = asyncio.get_running_loop().time()
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except RuntimedError:
            self.lost()
        self.look()

    def lost(self) -> None:
        """The client is gone, or is to be."""
        if not self.ended.is_set():
            self.ended.set()
            for stream in self._streams.values():
                stream.input.end()
            self.opened.put_nowait(None)

    def look(self) -> None:
        """Stop or go on reading, by how full the streams are."""
        full = any(stream.input.is_full for stream in self._streams.values()) or self._replies.qsize() > self._max
        if full != self._is_paused:
            self._is_paused = full
            (self._pause if full else self._resume)()

    def forget(self, stream: Stream) -> None:
        """Make room for another one."""
        self._streams.pop(stream.id, None)
        self.look()

    async def close(self) -> None:
        self.lost()
        self._answering.cancel()
        await asyncio.wait([self._answering])

    def _take(self, frame: spdy.Frame) -> None:
        stream = self._streams.get(frame.stream)
        match frame.type:
            case 0:
                if stream is not None:
                    stream.input.feed(frame.data)
            case spdy.SYN_STREAM:
                if frame.stream <= self._last or frame.stream % 2 == 0 or len(self._streams) >= self._max:
                    status = _REFUSED if frame.stream > self._last else _PROTOCOL_ERROR
                    self._replies.put_nowait(spdy.rst_stream(frame.stream, status))
                    return
                self._last = frame.stream
                stream = Stream(self, frame.stream, frame.headers or {})
                self._streams[frame.stream] = stream
                self._replies.put_nowait(self._encoder.syn_reply(frame.stream))
                self.opened.put_nowait(stream)
            case spdy.RST_STREAM:
                if stream is not None:
                    stream._is_closed = True
                    stream.input.end()
            case spdy.PING:
                if frame.stream % 2:
                    self._replies.put_nowait(spdy.ping(frame.stream))
            case spdy.GOAWAY:
                pass  # no more streams of ours: there never are any
        if frame.flags & spdy.FIN and stream is not None and frame.type in {0, spdy.SYN_STREAM, spdy.HEADERS}:
            stream.input.end()

    async def _answer(self) -> None:
        while True:
            await self.send(await self._replies.get())
            self.look()
