"""A gRPC server on asyncio. It takes what generated code and grpc's own packages add to a ``grpc.aio.server``.

grpc's own answers a small call in 300 us of CPU time, with two threads that wake each other; this one in 80, in one.
Left out is what no client of containerd uses: compression, TLS, HTTP/1.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from runtimed.errors import RuntimedError
from runtimed.rpc import hpack
from runtimed.rpc.grpc_wire import Inbox, framed, quoted
from runtimed.rpc.hpack import Header
from runtimed.rpc.http2 import (
    Connection,
    Stream,
    StreamClosed,
    block_frames,
    data_frame,
    header_frames,
)

log = logging.getLogger(__name__)

# Statuses beside those of our errors (grpc/doc/statuscodes.md).
_OK, _CANCELLED, _UNKNOWN, _DEADLINE_EXCEEDED, _UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE = 0, 1, 2, 4, 12, 13, 14

_ANSWER: tuple[Header, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_ANSWER_BLOCK = hpack.encode(_ANSWER)
_FINE_BLOCK = hpack.encode([(b"grpc-status", b"0")])
BACKLOG = 1024  # connections that wait to be taken: of more a client that does not wait hears EAGAIN
_LAST_WORDS_S = 0.5  # for the last answers to be read, when the server stops
_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

Wrap = Callable[[Any, str], Callable[..., Any]]  # a method's handler of grpc's, and its path


class Abort(Exception):
    """Ends a call with a status other than OK: its number, and what it says."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(details)
        self.code = code


class Context:
    """What a servicer gets beside the request: the part of ``grpc.aio.ServicerContext`` that is used."""

    def __init__(self, call: "_Call", metadata: tuple[tuple[str, str], ...]) -> None:
        self._call = call
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the headers of the request that are not gRPC's own."""
        return self._metadata

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        """Send the headers of the answer now, without waiting for its first message."""
        self._call.begin_answer(metadata)


class Server:
    """Serves methods on unix sockets."""

    def __init__(self, wrap: Wrap) -> None:
        """*wrap* makes of a handler what is called with the request (or an iterator of them) and the context."""
        self._wrap = wrap
        self._methods: dict[str, tuple[Any, Callable[..., Any]]] = {}
        self._connections: set[_Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self.is_stopping = False
        self.calls: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Offer the methods of *service*: name -> grpc.RpcMethodHandler. Generated code calls it."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            self._methods[path] = (handler, self._wrap(handler, path))

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Part of what generated code calls; the same methods once more."""

    async def serve(self, sock: socket.socket) -> None:
        """Take connections on *sock*, which is listening, until :meth:`stop`."""
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_unix_server(lambda: _Connection(self), sock=sock, backlog=BACKLOG))

    async def stop(self, grace_s: float | None = None) -> None:
        """Take no more calls, give those that run *grace_s* to end, and cancel what is left."""
        self.is_stopping = True
        for listener in self._listeners:
            listener.close()
        for connection in self._connections:
            connection.go_away()
        if self.calls and grace_s:
            await asyncio.wait(self.calls, timeout=grace_s)
        for call in self.calls:
            call.cancel()
        if self.calls:
            await asyncio.wait(self.calls)
        connections = list(self._connections)
        for connection in connections:
            connection.end()
        closed = [connection.closed for connection in connections]
        if closed:
            _, unread = await asyncio.wait(closed, timeout=_LAST_WORDS_S)
            if unread:  # of peers that do not read what they asked for
                for connection in connections:
                    connection.abort()
                await asyncio.wait(unread)

    def find(self, path: str) -> tuple[Any, Callable[..., Any]] | None:
        return self._methods.get(path)

    def add(self, connection: "_Connection") -> None:
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))


class _Connection(Connection):
    def __init__(self, server: Server) -> None:
        super().__init__(is_client=False)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.add(self)

    def on_request(self, id: int, headers: list[Header]) -> Stream:
        return _Call(self, id, self._server)


class _Call(Stream):
    """A call: what it sends goes to the inbox, and when it can be begun a task runs the servicer's method."""

    def __init__(self, connection: Connection, id: int, server: Server) -> None:
        super().__init__(connection, id)
        self._server = server
        self._inbox = Inbox(connection, self)
        self._handler: Any = None
        self._method: Callable[..., Any] | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._timeout_s: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_begun = False  # the answer's headers are sent

    # Stream

    def on_headers(self, headers: list[Header], is_last: bool) -> None:
        if self._method is None:
            self._read_head(headers)
            if self._method is not None and self._handler.request_streaming:
                self._start(self._answer(self._requests()))
        if is_last:
            self._end_of_request()

    def on_data(self, data: bytes, is_last: bool) -> None:
        try:
            self._inbox.feed(data)
        except RuntimedError as exc:
            self._inbox.end(exc)
            self._finish(exc.code, str(exc))
            return
        if is_last:
            self._end_of_request()

    def on_reset(self, code: int | None) -> None:
        self._inbox.end(asyncio.CancelledError())
        if self._task is not None:
            self._task.cancel()

    # The request

    def _read_head(self, headers: list[Header]) -> None:
        path, metadata = "", []
        for name, value in headers:
            text = value.decode("latin-1")
            if name == b":path":
                path = text
            elif name == b"grpc-timeout":
                self._timeout_s = _seconds(text)
            elif not name.startswith((b":", b"grpc-")):
                metadata.append((name.decode("latin-1"), text))
        if self._server.is_stopping:
            self._finish(_UNAVAILABLE, "the daemon is stopping")
            return
        found = self._server.find(path)
        if found is None:
            self._finish(_UNIMPLEMENTED, f"unknown method {path}")
            return
        self._handler, self._method = found
        self._metadata = tuple(metadata)

    def _end_of_request(self) -> None:
        self._inbox.end()
        if self._method is not None and not self._handler.request_streaming and self._task is None and self.is_open:
            self._start(self._answer(None))

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self._inbox.get()) is not None:
            yield self._read(message)

    def _read(self, message: bytes) -> Any:
        try:
            return self._handler.request_deserializer(message)
        except DecodeError:
            raise Abort(_INTERNAL, "the request is not the message that the method takes") from None

    # The answer

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(work)
        self._server.calls.add(self._task)
        self._task.add_done_callback(self._server.calls.discard)

    async def _answer(self, requests: AsyncIterator[Any] | None) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._call(requests)
        except Abort as exc:
            self._finish(exc.code, str(exc))
        except TimeoutError:
            self._finish(_DEADLINE_EXCEEDED, "the deadline that the client gave has passed")
        except StreamClosed:
            pass
        except asyncio.CancelledError:
            self._finish(_CANCELLED, "the call was cancelled")
        except Exception:
            log.exception("a call failed unexpectedly")
            self._finish(_UNKNOWN, "unexpected failure in the daemon; its log has the details")

    async def _call(self, requests: AsyncIterator[Any] | None) -> None:
        assert self._method is not None
        context = Context(self, self._metadata)
        request: Any = requests
        if requests is None:
            message = await self._inbox.get()
            if message is None:
                raise Abort(_UNKNOWN, "the request has no message")
            request = self._read(message)
        answer = self._method(request, context)
        if not self._handler.response_streaming:
            await self._send_only(self._handler.response_serializer(await answer))
            return
        try:
            async for message in answer:
                await self.send(message)
        finally:
            await answer.aclose()
        self._finish(_OK, "")

    async def send(self, message: Any) -> None:
        """Send one of several messages. Raises StreamClosed."""
        self.begin_answer()
        await self.connection.send(self, framed(self._handler.response_serializer(message)))

    def begin_answer(self, metadata: Iterable[tuple[str, str]] = ()) -> None:
        if not self._has_begun and self.is_open:
            self._has_begun = True
            extra = [(name.encode(), value.encode()) for name, value in metadata]
            self.connection.write(header_frames(self.id, [*_ANSWER, *extra]))

    async def _send_only(self, message: bytes) -> None:
        """Send the one message of an answer, and that all is well: in one write if the peer takes it."""
        data = framed(message)
        if self._has_begun or not self.connection.can_send(self, len(data)):
            self.begin_answer()
            await self.connection.send(self, data)
            self._finish(_OK, "")
        elif self.is_open:
            self.connection.spend(self, len(data))
            self.connection.write(
                block_frames(self.id, _ANSWER_BLOCK)
                + data_frame(self.id, data)
                + block_frames(self.id, _FINE_BLOCK, is_last=True)
            )
            self.connection.close(self)

    def _finish(self, code: int, details: str) -> None:
        """Send the status, and end the call."""
        if not self.is_open:
            return
        status: list[Header] = [(b"grpc-status", str(code).encode())]
        if details:
            status.append((b"grpc-message", quoted(details)))
        head = [] if self._has_begun else list(_ANSWER)
        self.connection.write(header_frames(self.id, [*head, *status], is_last=True))
        # No RST_STREAM, though the client may still be sending: it could overtake what the client has yet to read.
        self.connection.close(self)


def _seconds(text: str) -> float | None:
    """Return what a header ``grpc-timeout`` says; None if it says nothing that can be understood."""
    number, unit = text[:-1], text[-1:]
    return int(number) * _UNITS_S[unit] if number.isdigit() and len(number) <= 8 and unit in _UNITS_S else None
