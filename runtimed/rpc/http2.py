"""HTTP/2 (RFC 9113) on an asyncio connection, as much as gRPC uses: streams, flow control, no priorities, no push.

:class:`Connection` reads frames and hands what is in them to the :class:`Stream` they belong to. What is received is
bounded: a stream's peer gets a new window when what came has been taken (:meth:`Connection.credit`).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import cast

from runtimed.rpc import hpack
from runtimed.rpc.hpack import Header

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Section 6, the frames that are sent.
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_HAS_PRIORITY = 0x20

# Section 7, error codes.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11

_MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 0x3, 0x4
_DEFAULT_WINDOW = 65535  # bytes
_LARGEST_WINDOW = (1 << 31) - 1
_LARGEST_FRAME = 16384  # bytes; more is not offered, and not sent

_STREAM_WINDOW = 1 << 20  # bytes that a peer may send ahead on a stream
_CONNECTION_WINDOW = 16 << 20  # and on all of them
_LARGEST_BLOCK = 64 << 10  # bytes of headers, compressed
_LARGEST_DEBT = 1 << 20  # bytes that a peer may leave unread; data waits, and only answers to frames get this far
_MOST_STREAMS = 4096  # that a client may have open at once


class ProtocolError(Exception):
    """The peer breaks the rules; the connection ends with the error code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class StreamClosed(Exception):
    """The stream has been ended by the peer, or its connection has."""


class Stream(ABC):
    """A request and its answer. Subclasses take what the peer sends."""

    def __init__(self, connection: "Connection", id: int) -> None:
        self.connection = connection
        self.id = id
        self.window = connection.peer_window  # bytes that the peer takes now
        self.received = 0  # bytes that the peer has not been given a new window for
        self.is_open = True

    @abstractmethod
    def on_headers(self, headers: list[Header], is_last: bool) -> None:
        """Take headers, or trailers."""

    @abstractmethod
    def on_data(self, data: bytes, is_last: bool) -> None:
        """Take data; :meth:`Connection.credit` when there is room for more."""

    @abstractmethod
    def on_reset(self, code: int | None) -> None:
        """Take the end of it by the peer with an error code; None is the loss of the connection."""


class Connection(asyncio.Protocol):
    """One end of a connection; :meth:`on_request` makes it a server's."""

    def __init__(self, *, is_client: bool) -> None:
        self.streams: dict[int, Stream] = {}
        self.peer_window = _DEFAULT_WINDOW
        self.is_going = False  # the peer takes no more requests
        self.closed = asyncio.get_running_loop().create_future()
        self._is_client = is_client
        self._window = _DEFAULT_WINDOW
        self._received = 0
        self._buffer = bytearray()
        self._needs_preface = not is_client
        self._decoder = hpack.Decoder()
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, what has come of its headers
        self._newest = 0
        self._is_paused = False
        self._answers: bytearray | None = None  # what is written while frames are read
        self._waiters: set[asyncio.Future[None]] = set()

    # Subclasses

    def on_request(self, id: int, headers: list[Header]) -> Stream:
        """Return the stream of a request, which the peer has begun."""
        raise ProtocolError(PROTOCOL_ERROR, "a stream that nobody asked for")

    # Sending

    def open(self, stream: Stream) -> None:
        """Begin a stream, whose id is larger than that of any before it. For a client."""
        self._newest = stream.id
        self.streams[stream.id] = stream

    def close(self, stream: Stream, code: int | None = None) -> None:
        """Forget a stream; with an error *code* the peer is told to do so."""
        stream.is_open = False
        if self.streams.pop(stream.id, None) is not None and code is not None:
            self.write(_frame(_RST_STREAM, 0, stream.id, code.to_bytes(4)))

    def write(self, frames: bytes) -> None:
        """Send whole frames."""
        if self.closed.done():
            return
        if self._answers is not None:
            self._answers += frames
            return
        self._transport.write(frames)
        if self._is_paused and self._transport.get_write_buffer_size() > _LARGEST_DEBT:
            self._transport.abort()  # a peer that asks and asks, and never reads

    def can_send(self, stream: Stream, size: int) -> bool:
        """Say whether *size* bytes can be sent in one frame and at once: then :func:`data_frame` may be written."""
        return size <= min(self._window, stream.window, _LARGEST_FRAME) and not self._is_paused

    def spend(self, stream: Stream, size: int) -> None:
        """Account for *size* bytes of data."""
        self._window -= size
        stream.window -= size

    async def send(self, stream: Stream, data: bytes, *, is_last: bool = False) -> None:
        """Send data as the peer takes it. Raises StreamClosed."""
        rest = memoryview(data)
        while stream.is_open:
            size = min(len(rest), self._window, stream.window, _LARGEST_FRAME)
            if self._is_paused or (rest and size <= 0):
                await self._changed()
                continue
            self.spend(stream, size)
            piece, rest = rest[:size], rest[size:]
            self.write(data_frame(stream.id, piece, is_last=is_last and not rest))
            if not rest:
                return
        raise StreamClosed

    def credit(self, stream: Stream) -> None:
        """Give the peer a new window for what has been taken of *stream*, if it is about to need one."""
        if stream.received >= _STREAM_WINDOW // 2 and stream.is_open:
            self.write(_frame(_WINDOW_UPDATE, 0, stream.id, stream.received.to_bytes(4)))
            stream.received = 0

    def go_away(self, code: int = NO_ERROR, text: str = "") -> None:
        """Say that no more requests are taken."""
        self.write(_frame(_GOAWAY, 0, 0, self._newest.to_bytes(4) + code.to_bytes(4) + text.encode()))

    def end(self) -> None:
        """End the connection when what is written has been read."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._transport.abort()

    async def _changed(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = _setting(_INITIAL_WINDOW_SIZE, _STREAM_WINDOW)
        if not self._is_client:
            settings += _setting(_MAX_CONCURRENT_STREAMS, _MOST_STREAMS)
        more = (_CONNECTION_WINDOW - _DEFAULT_WINDOW).to_bytes(4)
        opening = _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, more)
        self._transport.write(PREFACE + opening if self._is_client else opening)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        for stream in list(self.streams.values()):
            self.close(stream)
            stream.on_reset(None)
        self._wake()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        # Answered in one piece: a transport of Python 3.12 or later sums up all its pieces at each write, and there are
        # thousands of them if a peer asks and never reads.
        self._answers = bytearray()
        self._buffer += data
        try:
            self._read_frames()
        except ProtocolError as exc:
            self.go_away(exc.code, str(exc))
            self.end()
        finally:
            self._flush()

    def _flush(self) -> None:
        answers, self._answers = self._answers, None
        if answers:
            self.write(bytes(answers))

    def _read_frames(self) -> None:
        buffer, at = self._buffer, 0
        if self._needs_preface:
            if not buffer.startswith(PREFACE[: len(buffer)]):
                raise ProtocolError(PROTOCOL_ERROR, "this is an HTTP/2 server")
            if len(buffer) < len(PREFACE):
                return
            self._needs_preface, at = False, len(PREFACE)
        while len(buffer) - at >= 9:
            length = int.from_bytes(buffer[at : at + 3])
            if length > _LARGEST_FRAME:
                raise ProtocolError(FRAME_SIZE_ERROR, "a frame larger than was offered")
            end = at + 9 + length
            if len(buffer) < end:
                break
            id = int.from_bytes(buffer[at + 5 : at + 9]) & _LARGEST_WINDOW
            self._frame_received(buffer[at + 3], buffer[at + 4], id, bytes(buffer[at + 9 : end]))
            at = end
        del buffer[:at]

    # Frames

    def _frame_received(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        if self._block is not None and (kind != _CONTINUATION or id != self._block[0]):
            raise ProtocolError(PROTOCOL_ERROR, "headers without their end")
        match kind:
            case 0:  # DATA
                self._on_data(flags, id, payload)
            case 1:  # HEADERS
                self._on_headers(flags, id, payload)
            case 3:  # RST_STREAM
                _require(len(payload) == 4)
                if (stream := self.streams.get(id)) is not None:
                    self.close(stream)
                    stream.on_reset(int.from_bytes(payload))
                    self._wake()
            case 4:  # SETTINGS
                if not flags & _ACK:
                    self._on_settings(payload)
            case 5:  # PUSH_PROMISE
                raise ProtocolError(PROTOCOL_ERROR, "nobody pushes here")
            case 6:  # PING
                _require(len(payload) == 8)
                if not flags & _ACK:
                    self.write(_frame(_PING, _ACK, 0, payload))
            case 7:  # GOAWAY
                _require(len(payload) >= 8)
                self._on_goaway(int.from_bytes(payload[:4]) & _LARGEST_WINDOW)
            case 8:  # WINDOW_UPDATE
                _require(len(payload) == 4)
                self._on_window_update(id, int.from_bytes(payload) & _LARGEST_WINDOW)
            case 9:  # CONTINUATION
                if self._block is None:
                    raise ProtocolError(PROTOCOL_ERROR, "a continuation of nothing")
                self._block[2].extend(payload)
                self._end_block(flags)

    def _on_data(self, flags: int, id: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > _CONNECTION_WINDOW // 2:
            self.write(_frame(_WINDOW_UPDATE, 0, 0, self._received.to_bytes(4)))
            self._received = 0
        stream = self.streams.get(id)
        if stream is None:
            if id == 0 or id > self._newest:
                raise ProtocolError(PROTOCOL_ERROR, "data of no stream")
            return  # of one that has just been ended
        stream.received += len(payload)
        if stream.received > _STREAM_WINDOW:
            raise ProtocolError(FLOW_CONTROL_ERROR, "more data than was allowed")
        stream.on_data(_unpadded(flags, payload), bool(flags & _END_STREAM))

    def _on_headers(self, flags: int, id: int, payload: bytes) -> None:
        block = _unpadded(flags, payload)
        if flags & _HAS_PRIORITY:
            block = block[5:]
        self._block = (id, flags, bytearray(block))
        self._end_block(flags)

    def _end_block(self, flags: int) -> None:
        assert self._block is not None
        id, first_flags, block = self._block
        if len(block) > _LARGEST_BLOCK:
            raise ProtocolError(ENHANCE_YOUR_CALM, "headers that are too large")
        if not flags & _END_HEADERS:
            return
        self._block = None
        try:
            headers = self._decoder.decode(bytes(block))
        except hpack.Malformed as exc:
            raise ProtocolError(COMPRESSION_ERROR, str(exc)) from None
        stream = self.streams.get(id)
        if stream is None:
            if id <= self._newest:
                return  # of one that has just been ended
            _require(id % 2 == 1)
            self._newest = id
            if len(self.streams) >= _MOST_STREAMS:
                self.write(_frame(_RST_STREAM, 0, id, REFUSED_STREAM.to_bytes(4)))
                return
            stream = self.on_request(id, headers)
            self.streams[id] = stream
        stream.on_headers(headers, bool(first_flags & _END_STREAM))

    def _on_settings(self, payload: bytes) -> None:
        _require(len(payload) % 6 == 0)
        for at in range(0, len(payload), 6):
            name, value = int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6])
            if name == _INITIAL_WINDOW_SIZE:
                if value > _LARGEST_WINDOW:
                    raise ProtocolError(FLOW_CONTROL_ERROR, "a window that is too large")
                for stream in self.streams.values():
                    stream.window += value - self.peer_window
                self.peer_window = value
        self.write(_frame(_SETTINGS, _ACK, 0, b""))
        self._wake()

    def _on_window_update(self, id: int, more: int) -> None:
        if id == 0:
            self._window += more
            if self._window > _LARGEST_WINDOW:
                raise ProtocolError(FLOW_CONTROL_ERROR, "a window that is too large")
        elif (stream := self.streams.get(id)) is not None:
            stream.window += more
        self._wake()

    def _on_goaway(self, last: int) -> None:
        self.is_going = True
        if not self._is_client:
            return
        for stream in list(self.streams.values()):
            if stream.id > last:  # it was not begun
                self.close(stream)
                stream.on_reset(REFUSED_STREAM)


def data_frame(id: int, data: bytes | memoryview, *, is_last: bool = False) -> bytes:
    """Return a DATA frame of at most 16 KiB."""
    return _frame(_DATA, _END_STREAM if is_last else 0, id, data)


def header_frames(id: int, headers: Iterable[Header], *, is_last: bool = False) -> bytes:
    """Return a HEADERS frame, and what it takes to continue it."""
    return block_frames(id, hpack.encode(headers), is_last=is_last)


def block_frames(id: int, block: bytes, *, is_last: bool = False) -> bytes:
    """Return what :func:`header_frames` does, of headers that are encoded."""
    first, rest = block[:_LARGEST_FRAME], block[_LARGEST_FRAME:]
    flags = (_END_STREAM if is_last else 0) | (0 if rest else _END_HEADERS)
    frames = [_frame(_HEADERS, flags, id, first)]
    while rest:
        piece, rest = rest[:_LARGEST_FRAME], rest[_LARGEST_FRAME:]
        frames.append(_frame(_CONTINUATION, 0 if rest else _END_HEADERS, id, piece))
    return b"".join(frames)


def _frame(kind: int, flags: int, id: int, payload: bytes | memoryview) -> bytes:
    return b"".join((len(payload).to_bytes(3), bytes((kind, flags)), id.to_bytes(4), payload))


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2) + value.to_bytes(4)


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    _require(bool(payload) and payload[0] < len(payload))
    return payload[1 : len(payload) - payload[0]]


def _require(is_right: bool) -> None:
    if not is_right:
        raise ProtocolError(FRAME_SIZE_ERROR, "a frame that is not right")
