"""Calls over gRPC on a unix socket, for rctl: grpc itself takes 28 ms of CPU time to load alone."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runtimed.errors import Internal, RuntimedError, Unavailable, from_code
from runtimed.rpc.grpc_wire import Inbox, framed, unquoted
from runtimed.rpc.hpack import Header
from runtimed.rpc.http2 import (
    CANCEL,
    NO_ERROR,
    REFUSED_STREAM,
    Connection,
    Stream,
    StreamClosed,
    data_frame,
    header_frames,
)

_CANCELLED = 1  # the status

Metadata = Sequence[tuple[str, str]]


class Lost(Unavailable):
    """The connection ended before the answer came, or there is none."""


class Cancelled(RuntimedError):
    """The server gave the call up: it is stopping."""


class Call(Stream):
    """One call: messages there and back, then a status."""

    def __init__(self, connection: Connection, id: int) -> None:
        super().__init__(connection, id)
        self._inbox = Inbox(connection, self)

    async def send(self, message: bytes, *, is_last: bool = False) -> bool:
        """Send a message; say whether the call still takes any. If not, :meth:`receive` has the reason."""
        try:
            await self.connection.send(self, framed(message), is_last=is_last)
        except StreamClosed:
            return False
        return True

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        with suppress(StreamClosed):
            await self.connection.send(self, b"", is_last=True)

    async def receive(self) -> bytes | None:
        """Return the next message; None when the call has ended well.

        Raises:
            Lost: the connection has ended.
            Cancelled: by the server.
            RuntimedError: the status that the server answered.
        """
        return await self._inbox.get()

    def cancel(self) -> None:
        """Give the call up, if it has not ended."""
        self.connection.close(self, CANCEL)
        self._inbox.end()

    # Stream

    def on_headers(self, headers: list[Header], is_last: bool) -> None:
        if not is_last:
            return
        found = dict(headers)
        self.connection.close(self, NO_ERROR)  # what we still had to say nobody wants to hear
        if b"grpc-status" not in found:
            self._inbox.end(Internal(f"the server answers with HTTP status {found.get(b':status', b'')!r}"))
            return
        status, message = found[b"grpc-status"], unquoted(found.get(b"grpc-message", b""))
        self._inbox.end(None if status == b"0" else _error(status, message))

    def on_data(self, data: bytes, is_last: bool) -> None:
        try:
            self._inbox.feed(data)
        except RuntimedError as exc:
            self._inbox.end(exc)
            self.connection.close(self, CANCEL)
        if is_last:
            self._inbox.end(Internal("the server answers without a status"))
            self.connection.close(self)

    def on_reset(self, code: int | None) -> None:
        if code is None:
            self._inbox.end(Lost("lost the connection"))
        elif code in {CANCEL, REFUSED_STREAM}:
            self._inbox.end(Cancelled("the server gave the call up"))
        else:
            self._inbox.end(Internal(f"the server gave the call up with HTTP/2 error {code}"))


class Channel:
    """Calls to the server at a unix socket, over one connection that is made when it is needed, also anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._next_id = 1

    async def call(self, method: str, metadata: Metadata, message: bytes | None = None) -> Call:
        """Begin a call of *method*, a path; *message*, if there is one, is all that is sent. Raises Lost."""
        connection = await self._connected()
        call = Call(connection, self._next_id)
        self._next_id += 2
        connection.open(call)
        head = header_frames(call.id, _headers(method, metadata))
        data = framed(message) if message is not None else b""
        if data and connection.can_send(call, len(data)):
            connection.spend(call, len(data))
            connection.write(head + data_frame(call.id, data, is_last=True))
            return call
        connection.write(head)
        if message is not None:
            await call.send(message, is_last=True)
        return call

    async def unary(self, method: str, metadata: Metadata, message: bytes) -> bytes:
        """Return the answer to a message. Raises as :meth:`Call.receive`."""
        call = await self.call(method, metadata, message)
        try:
            answer = await call.receive()
            while await call.receive() is not None:
                pass
        finally:
            call.cancel()
        if answer is None:
            raise Internal(f"{method}: no answer")
        return answer

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.end()
            await self._connection.closed

    async def _connected(self) -> Connection:
        async with self._connecting:
            connection = self._connection
            if connection is None or connection.is_going or connection.closed.done():
                loop = asyncio.get_running_loop()
                try:
                    _, connection = await loop.create_unix_connection(
                        lambda: Connection(is_client=True), str(self._path)
                    )
                except OSError as exc:
                    raise Lost(f"{self._path}: {exc.strerror or exc}") from None
                self._connection, self._next_id = connection, 1
            return connection


def _headers(method: str, metadata: Metadata) -> list[Header]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"localhost"),  # a socket's path Go's server would refuse
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *((key.encode(), value.encode()) for key, value in metadata),
    ]


def _error(status: bytes, message: str) -> RuntimedError:
    code = int(status) if status.isdigit() else 2
    return Cancelled(message) if code == _CANCELLED else from_code(code, message)
