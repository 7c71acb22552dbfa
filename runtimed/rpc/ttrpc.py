"""ttrpc on asyncio: what the daemon and shims speak to each other, client and server. Frames: runtimed.rpc.frames.

The payloads are ``ttrpc.Request`` and ``ttrpc.Response``. Calls share a connection and are answered in any order. The
deadline of a call travels with it, its cancellation does not. Only unary calls are spoken here.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from runtimed.api import ttrpc_pb2 as pb
from runtimed.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    RuntimedError,
    Unavailable,
    Unimplemented,
    from_code,
    from_os_error,
)
from runtimed.rpc import frames
from runtimed.rpc.frames import MAX_MESSAGE, Frame

log = logging.getLogger(__name__)

_READ_SIZE = 64 << 10  # bytes
_CONNECT_AGAIN_S = 0.02

_Response = TypeVar("_Response", bound=Message)

Handler = Callable[[Any, Mapping[str, str]], Awaitable[Message]]


class Reader(Protocol):
    """Where the bytes of a connection come from; b"" is its end."""

    async def read(self, n: int = -1) -> bytes: ...


class Writer(Protocol):
    """Where the bytes of a connection go."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...
    async def wait_closed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Method:
    """What a server calls: the type of the request and an async function of request and metadata."""

    request_type: type[Message]
    handler: Handler


Service = Mapping[str, Method]  # by method name


class Client:
    """A connection to a ttrpc server. Any number of calls may be under way at once."""

    def __init__(self, reader: Reader, writer: Writer, peer: str) -> None:
        self._writer = writer
        self._peer = peer
        self._stream = -1
        self._pending: dict[int, asyncio.Future[pb.Response]] = {}
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done once disconnected
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], timeout_s: float | None = None) -> Self:
        """Connect to the unix socket *path*.

        Raises:
            Unavailable: nobody listens there.
            DeadlineExceeded: the server's queue stayed full for *timeout_s*.
        """
        peer = os.fspath(path)
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(sock=await _connected(peer))
        except TimeoutError:
            raise DeadlineExceeded(f"ttrpc server at {peer}: no connection within {timeout_s} s") from None
        except FileNotFoundError:
            raise Unavailable(f"ttrpc server at {peer}: there is no such socket") from None
        except OSError as exc:
            raise from_os_error(exc, f"ttrpc server at {peer}") from exc
        return cls(reader, writer, peer)

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[_Response],
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> _Response:
        """Call a method and return its response.

        Raises:
            DeadlineExceeded: no answer within *timeout_s*; the server may still be working on it.
            Unavailable: the connection is gone, or went before the answer came.
            RuntimedError: the error the server answered, as the class of its code.
        """
        if self.closed.done():
            raise Unavailable(f"connection to {self._peer} is closed")
        call = pb.Request(service=service, method=method, payload=request.SerializeToString())
        if timeout_s is not None:
            call.timeout_nano = max(1, int(timeout_s * 1e9))
        for key, value in (metadata or {}).items():
            call.metadata.add(key=key, value=value)
        payload = call.SerializeToString()
        if len(payload) > MAX_MESSAGE:
            raise ResourceExhausted(frames.too_long(len(payload)))

        self._stream += 2
        stream = self._stream
        answer: asyncio.Future[pb.Response] = asyncio.get_running_loop().create_future()
        self._pending[stream] = answer
        try:
            async with asyncio.timeout(timeout_s):
                # First: calls of a peer that hangs, which takes nothing, are not to pile up.
                with suppress(ConnectionError):  # the reader notices as well and fails the answer
                    await self._writer.drain()
                self._writer.write(frames.packed(stream, frames.REQUEST, payload))
                response = await answer
        except TimeoutError:
            raise DeadlineExceeded(f"{service}/{method}: no answer from {self._peer} within {timeout_s} s") from None
        finally:
            self._pending.pop(stream, None)
        if response.status.code:
            raise from_code(response.status.code, response.status.message)
        try:
            return response_type.FromString(response.payload)
        except DecodeError:
            raise Internal(f"{service}/{method}: {self._peer} sent a malformed response") from None

    async def close(self) -> None:
        """Disconnect. Calls under way fail with Unavailable."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _read(self, reader: Reader) -> None:
        try:
            async for frame in _frames(reader):
                answer = self._pending.get(frame.stream)
                if frame.type == frames.RESPONSE and answer is not None and not answer.done():
                    _settle(answer, frame)
        except ConnectionError:
            pass  # the peer has closed or died
        finally:
            self._writer.close()
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(Unavailable(f"connection to {self._peer} closed before the answer"))
            self.closed.set_result(None)


async def _connected(path: str) -> socket.socket:
    """Return a socket that is connected to *path*. Raises OSError.

    Connecting a unix socket is done at once or, where the server's queue is full, refused with EAGAIN; there is nothing
    to wait for then but time. (The event loop takes EAGAIN for a connection under way, and then for one that is there.)
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                await asyncio.sleep(_CONNECT_AGAIN_S)
    except BaseException:
        sock.close()
        raise


def _settle(answer: asyncio.Future[pb.Response], frame: Frame) -> None:
    if frame.payload is None:
        answer.set_exception(ResourceExhausted(frames.too_long(frame.length)))
        return
    try:
        answer.set_result(pb.Response.FromString(frame.payload))
    except DecodeError:
        answer.set_exception(Internal("the answer is not a ttrpc response"))


class Server:
    """Answers calls for *services*, by their full names. Only peers with this process's user ID may connect."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    async def serve(self, sock: socket.socket) -> None:
        """Begin to accept clients on *sock*, a listening unix socket that the server will close. Returns at once."""
        self._server = await asyncio.start_unix_server(self._accepted, sock=sock)

    async def attach(self, sock: socket.socket) -> None:
        """Serve one client, connected already, on *sock*, which the server will close. Returns at once."""
        self._accepted(*await asyncio.open_unix_connection(sock=sock))

    async def close(self) -> None:
        """Stop accepting, cancel the calls under way, disconnect everybody."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connection(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        connection.add_done_callback(lambda _: writer.close())  # also of one that is cancelled before its first step

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            frames.check_peer(writer.get_extra_info("socket"))
        except PermissionDenied as exc:
            log.warning("%s", exc)
            return
        await self.converse(reader, writer)

    async def converse(self, reader: Reader, writer: Writer, at_once: int | None = None) -> None:
        """Answer what comes on one connection until its end; *at_once*: so many calls, then nothing is read."""
        calls: set[asyncio.Task[None]] = set()
        try:
            last_stream = 0
            async for frame in _frames(reader):
                if frame.type != frames.REQUEST:
                    continue  # data of a stream that we refused
                refusal = frames.refusal(frame, last_stream)
                last_stream = max(last_stream, frame.stream)
                while at_once is not None and len(calls) >= at_once:
                    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.sleep(0)  # for the callbacks below
                call = asyncio.create_task(self._answer(frame, refusal, writer))
                calls.add(call)
                call.add_done_callback(calls.discard)
        except ConnectionError:
            pass  # the client has closed or died
        finally:
            for call in calls:
                call.cancel()

    async def _answer(self, frame: Frame, refusal: RuntimedError | None, writer: Writer) -> None:
        response = pb.Response()
        try:
            if refusal is not None or frame.payload is None:
                raise refusal or ResourceExhausted(frames.too_long(frame.length))
            response.payload = (await self._call(frame.payload)).SerializeToString()
            if response.ByteSize() > MAX_MESSAGE:
                raise ResourceExhausted(frames.too_long(response.ByteSize()))
        except RuntimedError as exc:
            response = _error(exc.code, str(exc))
        except Exception as exc:
            log.exception("a ttrpc handler failed")
            response = _error(RuntimedError.code, f"{type(exc).__name__}: {exc}")
        payload = response.SerializeToString()
        with suppress(ConnectionError):  # a client that has gone needs no answer
            writer.write(frames.packed(frame.stream, frames.RESPONSE, payload))
            await writer.drain()

    async def _call(self, payload: bytes) -> Message:
        try:
            call = pb.Request.FromString(payload)
        except DecodeError:
            raise InvalidArgument("not a ttrpc request") from None
        service = self._services.get(call.service)
        if service is None:
            raise Unimplemented(f"service {call.service}")
        method = service.get(call.method)
        if method is None:
            raise Unimplemented(f"method {call.method} of service {call.service}")
        try:
            request = method.request_type.FromString(call.payload)
        except DecodeError:
            raise InvalidArgument(f"{call.service}/{call.method}: malformed request") from None
        metadata: dict[str, str] = {}
        for item in call.metadata:
            metadata.setdefault(item.key, item.value)  # the first of several counts

        limit_s = call.timeout_nano / 1e9 if call.timeout_nano > 0 else None
        try:
            async with asyncio.timeout(limit_s) as deadline:
                return await method.handler(request, metadata)
        except TimeoutError:
            if deadline.expired():
                raise DeadlineExceeded(f"{call.service}/{call.method}: not done within {limit_s:g} s") from None
            raise


async def _frames(reader: Reader) -> AsyncIterator[Frame]:
    """Return the frames of a connection until its end, wherever that comes."""
    splitter = frames.Splitter()
    while data := await reader.read(_READ_SIZE):
        for frame in splitter.feed(data):
            yield frame


def _error(code: int, message: str) -> pb.Response:
    response = pb.Response()
    response.status.code = code
    response.status.message = message[: MAX_MESSAGE // 8]
    return response
